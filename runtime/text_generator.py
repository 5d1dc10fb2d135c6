"""`TextGenerator`: text in, text out, on top of a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .artifact import open_artifact
from .asynchronous import in_thread
from .chat_template import Message, load_chat_template
from .completion import Completion
from .errors import RuntimeFailure
from .loading import load
from .sampling_defaults import merged, sampling_defaults
from .session import Session
from .text import TextStream, load_tokenizer


class TextGenerator:
    """Generates text with an artifact that has a tokenizer.

    >>> generator = TextGenerator("out/")                                    # doctest: +SKIP
    >>> for text in generator.generate("def read_lines(path):", max_new_tokens=64):
    ...     print(text, end="", flush=True)                                  # doctest: +SKIP
    >>> generator.chat([{"role": "user", "content": "Hello"}], stop=["."])   # doctest: +SKIP

    `generate` and `chat` return a `Completion`: iterate for its text. Their options are those of
    `Session.generate`, and `stop`, strings that end the text and are not part of it. What is not given comes
    from the model's generation_config.json. A prompt that begins with what is in the KV cache, as the next
    turn of a chat does, is only fed what is new.

    Args:
        path: the folder that webgpu-compile wrote.
        session: a session of that folder to use; `close` leaves it alone. None to load one.
        load_options: of `load`.

    Raises:
        RuntimeFailure: as `load`; no tokenizer.json; the tokenizers library is missing.
    """

    def __init__(self, path: str | Path, *, session: Session | None = None, **load_options: Any) -> None:
        artifact = open_artifact(path)
        if artifact.manifest.sequence is None:
            raise RuntimeFailure(str(path), "is not a language model", "use webgpu_compile.load() and run()")
        self.tokenizer = load_tokenizer(artifact, "text")
        self.chat_template = load_chat_template(artifact)
        self.defaults = sampling_defaults(artifact)
        self._special = special_token_ids(self.tokenizer)
        self._owns_session = session is None
        self.session = load(path, **load_options) if session is None else session
        self._turn = asyncio.Lock()

    def generate(self, prompt: str, *, stop: Iterable[str] = (), **options: Any) -> Completion:
        """Go on from `prompt`, with the special tokens that tokenizer.json adds (a first one, mostly).

        Raises:
            RuntimeFailure: an option that cannot be used; a prompt that is empty or longer than the cache.
        """
        return self.complete(self.encode(prompt), stop=stop, **options)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stop: Iterable[str] = (),
        template_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Completion:
        """The assistant's answer to `messages`, written as the model's chat template says.

        Args:
            messages: {"role": ..., "content": ...}, oldest first.
            stop: strings that end the answer.
            template_options: variables of the template, such as `tools`.
            options: of `Session.generate`.

        Raises:
            RuntimeFailure: the model has no template, or its template refuses; as `generate`.
        """
        if self.chat_template is None:
            raise RuntimeFailure(
                "chat",
                "needs a chat template, which this model does not have",
                "use generate() with plain text",
            )
        text = self.chat_template.render(messages, **(template_options or {}))
        # The template writes the special tokens itself.
        return self.complete(self.encode(text, add_special_tokens=False), stop=stop, **options)

    def complete(self, ids: Sequence[int], *, stop: Iterable[str] = (), **options: Any) -> Completion:
        """Go on from token ids."""
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        options = merged(self.defaults, options)
        stop_tokens = [self._special[text] for text in stop if text in self._special]
        if stop_tokens:  # special tokens are no text, so they would not be found in it
            own = options.get("stop_tokens")
            options["stop_tokens"] = [*(self._own_stop_tokens() if own is None else own), *stop_tokens]
        known = self.session.tokens
        if list(ids[: len(known)]) != known:
            self.session.reset()
            known = []
        return Completion(self.session, ids[len(known) :], TextStream(self.tokenizer), stop, **options)

    async def agenerate(self, prompt: str, **options: Any) -> AsyncGenerator[str, None]:
        """`generate` for asyncio: `async for text in generator.agenerate(prompt)`.

        The GPU is waited for in another thread; calls wait for their turn; cancelling ends the generation.
        """
        async for text in self._in_turn(lambda: self.generate(prompt, **options)):
            yield text

    async def achat(self, messages: Sequence[Message], **options: Any) -> AsyncGenerator[str, None]:
        """`chat` for asyncio, see `agenerate`."""
        async for text in self._in_turn(lambda: self.chat(messages, **options)):
            yield text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids)))

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._owns_session:
            self.session.close()

    def __enter__(self) -> TextGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own_stop_tokens(self) -> list[int]:
        sequence = self.session.manifest.sequence
        return sequence.stop_tokens if sequence is not None else []

    async def _in_turn(self, begin: Callable[[], Completion]) -> AsyncGenerator[str, None]:
        async with self._turn:
            completion = begin()
            pieces = in_thread(completion)
            try:
                async for text in pieces:
                    yield text
            finally:
                completion.stop()
                await pieces.aclose()


def special_token_ids(tokenizer: Any) -> dict[str, int]:
    """Ids by text of the tokens that decoding leaves out."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: index for index, token in added.items() if token.special}
