"""One generation as text: an iterator that knows its tokens, its times and why it ended."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .sampling_defaults import NAMES
from .session import Session
from .stop_strings import StopStrings


class Stream(Protocol):
    """Tokens in, text out: `text.TextStream`, or what prints ids."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class TokenIds:
    """A `Stream` that writes ids: 1,2,3"""

    def __init__(self) -> None:
        self._separator = ""

    def push(self, token: int) -> str:
        separator, self._separator = self._separator, ","
        return f"{separator}{token}"

    def finish(self) -> str:
        return ""


@dataclass(slots=True)
class Times:
    """Seconds since the generation began: the first token, the last one so far."""

    first: float = 0.0
    last: float = 0.0


class Completion(Iterator[str]):
    """Text as it comes, in pieces that end between characters. Made by `TextGenerator`.

    Attributes:
        n_prompt: tokens of the prompt.
        n_cached: those of them that were in the KV cache already.
        tokens: ids generated so far, without the stop token.
        text: all text given so far.
        finish_reason: stop (a stop token or a stop string), length, capacity (the KV cache is full); None
            while it runs and when it was stopped from outside.
        sampling: how the tokens are chosen, as given to `Session.generate`, and the seed used.
        times: seconds to the first and to the last token.
    """

    def __init__(
        self, session: Session, ids: Sequence[int], stream: Stream, stop: Iterable[str] = (), **options: Any
    ) -> None:
        known = len(session.tokens)
        self.n_prompt = known + len(ids)
        self.n_cached = known
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.times = Times()
        self._stops = StopStrings(stop)
        self._stopped = False
        tokens = session.generate(ids, **options)
        given = {name: options[name] for name in NAMES if options.get(name) is not None}
        self.sampling: dict[str, Any] = {"temperature": 0, **given, "seed": session.seed}
        self._pieces = self._run(session, tokens, stream)

    def __next__(self) -> str:
        return next(self._pieces)

    def stop(self) -> None:
        """End it at the next token. Any thread, and a signal handler, may call this."""
        self._stopped = True

    def close(self) -> None:
        """End it now. The sequence keeps the tokens that were given."""
        self._pieces.close()

    def _run(self, session: Session, tokens: Iterator[int], stream: Stream) -> Generator[str, None, None]:
        start = time.perf_counter()
        try:
            for token in tokens:
                self.times.last = time.perf_counter() - start
                self.times.first = self.times.first or self.times.last
                self.tokens.append(token)
                yield from self._given(self._stops.push(stream.push(token)))
                if self._stops.found is not None:
                    self.finish_reason = "stop"
                    return
                if self._stopped:
                    break
            else:
                self.finish_reason = session.finish_reason
            yield from self._given(self._stops.push(stream.finish()))
            if self._stops.found is None:
                yield from self._given(self._stops.finish())
        finally:
            if isinstance(tokens, Generator):
                tokens.close()

    def _given(self, text: str) -> Iterator[str]:
        if text:
            self.text += text
            yield text
