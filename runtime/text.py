"""Text in and out of token ids, with the tokenizer that lies in the artifact."""

from __future__ import annotations

from typing import Any

from .artifact import Artifact
from .errors import RuntimeFailure

REPLACEMENT = "\ufffd"


def load_tokenizer(artifact: Artifact) -> Any:
    """The `tokenizers.Tokenizer` of the artifact's tokenizer.json.

    Raises:
        RuntimeFailure: the library or the file is missing, or the file is not a tokenizer.
    """
    if "tokenizer.json" not in artifact.manifest.files:
        raise RuntimeFailure(
            "--prompt",
            "needs a tokenizer.json, which this artifact does not have",
            "compile from a model folder that has one, or give token ids with --tokens",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise RuntimeFailure(
            "--prompt",
            "needs the tokenizers library",
            "run `pip install webgpu-compile[text]`, or give token ids with --tokens",
        ) from None
    data = artifact.file("tokenizer.json")
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exceptions
        raise RuntimeFailure(
            "tokenizer.json",
            f"is not one that the tokenizers library reads ({error})",
            "replace it, compile again",
        ) from None


class TextStream:
    """Tokens in, text out as soon as it is certain.

    A token may be a part of a character, and its text may depend on the token before it (a leading space), so
    the text of a token is the difference that it makes to the text of the last few.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not complete."""
        self._tokens.append(token)
        return self._text(final=False)

    def finish(self) -> str:
        """What is left, complete or not."""
        return self._text(final=True)

    def _text(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._given])
        now = self._tokenizer.decode(self._tokens[self._start :])
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and not final):
            return ""
        self._start, self._given = self._given, len(self._tokens)
        return str(now[len(before) :])
