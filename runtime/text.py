"""Text in and out of token ids, with the tokenizer that lies in the artifact."""

from __future__ import annotations

from typing import Any

from .artifact import Artifact
from .errors import RuntimeFailure

REPLACEMENT = "\ufffd"
PENDING = 8
"""Tokens held back for the end of a character. One has four bytes at most, so by then some are no text."""


def load_tokenizer(artifact: Artifact, subject: str = "--prompt") -> Any:
    """The `tokenizers.Tokenizer` of the artifact's tokenizer.json; `subject` is what needs it.

    Raises:
        RuntimeFailure: the library or the file is missing, or the file is not a tokenizer.
    """
    if "tokenizer.json" not in artifact.manifest.files:
        raise RuntimeFailure(
            subject,
            "needs a tokenizer.json, which this artifact does not have",
            "compile from a model folder that has one, or give token ids with --tokens",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise RuntimeFailure(
            subject,
            "needs the tokenizers library",
            "run `pip install webgpu-compile[text]`, or give token ids with --tokens",
        ) from None
    data = artifact.file("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exceptions
        raise RuntimeFailure(
            "tokenizer.json",
            f"is not one that the tokenizers library reads ({error})",
            "replace it, compile again",
        ) from None
    # Files of models for classification bring these along; they would cut or pad a prompt silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class TextStream:
    """Tokens in, text out as soon as it is certain; joined it is what decoding all of them at once gives.

    A token may be a part of a character, and its text may depend on the token before it (a leading space), so
    the text of a token is the difference that it makes to the text of the last few. Special tokens such as
    `</s>` are not text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not complete."""
        self._tokens.append(token)
        end = len(self._tokens)
        if not self._decode(self._start, end).endswith(REPLACEMENT):
            return self._text(end)
        if end - self._given > PENDING:
            return self._text(self._last_border(end))
        return ""

    def finish(self) -> str:
        """What is left, complete or not."""
        return self._text(len(self._tokens))

    def _text(self, end: int) -> str:
        """The text of the tokens up to `end` that was not given yet."""
        before = self._decode(self._start, self._given)
        now = self._decode(self._start, end)
        if len(now) <= len(before):
            return ""
        self._start, self._given = self._given, end
        return now[len(before) :]

    def _last_border(self, end: int) -> int:
        """The last place between the pending tokens that splits no character, or where they begin."""
        whole = self._decode(self._given, end)
        for border in range(end - 1, self._given, -1):
            if self._decode(self._given, border) + self._decode(border, end) == whole:
                return border
        return self._given

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[start:end]))
