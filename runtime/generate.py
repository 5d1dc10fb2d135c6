"""Generation: the GPU feeds itself, the host encodes ahead and reads tokens now and then.

    host   encode A,B | read A, encode C | read B, encode D | ...
    GPU               A                  B                  C

A batch is N decode steps in one submission, with one copy of the sequence's words and the batch's slice of
the tokens into a mappable buffer. Nothing is uploaded and nothing awaited per token.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from .chunks import choose_chunks
from .errors import RuntimeFailure
from .replay import CopyCall, Prepared
from .resources import Resources
from .sampling import GREEDY, Sampling
from .schema import Sequence as SequenceState
from .sequence import History, Writer
from .staging import Staging

IN_FLIGHT = 2
"""Batches submitted and not yet read: one that the GPU works on and one that it continues with."""


class Finish(StrEnum):
    """Why a generation ended, in the words of OpenAI's API; `capacity` is ours."""

    STOP = "stop"
    LENGTH = "length"
    CAPACITY = "capacity"


class CapacityWarning(UserWarning):
    """The KV cache is full."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `generate`, checked: `limit` is the number of tokens at which it ends."""

    n_tokens: int
    limit: int
    stop_tokens: tuple[int, ...]
    tokens_per_submit: int
    capacity_limited: bool
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class _Batch:
    submission: int
    staging: Staging
    first: int
    n_tokens: int


class Generator:
    """Runs one request on prepared resources. `run` yields tokens and sets `finish`."""

    def __init__(self, resources: Resources, state: SequenceState, history: History, writer: Writer) -> None:
        self.finish: Finish | None = None
        self._resources = resources
        self._state = state
        self._history = history
        self._writer = writer
        self._n_words = 1 + max(state.words["n_tokens"], state.words.get("stop", 0))
        self._idle: list[Staging] = []
        self._warned = False

    def run(self, request: Request) -> Iterator[int]:
        """Tokens of `request`, whose prompt is already in the history. A stop token is not among them."""
        self.finish = None
        if self._state.driven_by == "host":
            yield from self._host_driven(request)
        else:
            yield from self._gpu_driven(request)

    def _gpu_driven(self, request: Request) -> Iterator[int]:
        history, known = self._history, request.n_tokens
        self._writer.write_tokens(history.tokens, history.past)
        self._writer.write_words(
            history.past, known, request.limit, request.stop_tokens, sampling=request.sampling
        )
        waiting: deque[_Batch] = deque()
        try:
            waiting.append(self._prefill(known, request.sampling))
            encoded = self._encode_ahead(waiting, known + 1, request)
            while waiting:
                batch = waiting.popleft()
                tokens, n_tokens, stop = self._read(batch)
                if not stop:
                    encoded = self._encode_ahead(waiting, encoded, request)
                for token in tokens[: n_tokens - batch.first]:
                    history.tokens.append(token)
                    history.past = len(history.tokens) - 1
                    yield token
                if stop:
                    if stop == 1:
                        history.past = len(history.tokens)  # the stop token came from the last one's logits
                    self._ended(Finish.STOP if stop == 1 else Finish.LENGTH, request)
                    break
        finally:
            # Whoever leaves early leaves the GPU running ahead; its buffers must not stay mapped.
            for batch in waiting:
                self._read(batch)

    def _program(self, rows: int, sampling: Sampling | None) -> Prepared:
        """The program that feeds a chunk and chooses the token behind it."""
        decode = "decode_sampled" if sampling is not None and sampling.mode != GREEDY else "decode"
        return self._resources.programs[decode if rows == 1 else f"prefill_{rows}"]

    def _prefill(self, n_tokens: int, sampling: Sampling) -> _Batch:
        """Feed the tokens that are not in the cache yet; the last chunk samples one."""
        history = self._history
        chunks = choose_chunks(n_tokens - history.past, prefill_sizes(self._resources.programs))
        for rows in chunks[:-1]:
            self._resources.recorder.submit([self._program(rows, sampling)])
        batch = self._submit([self._program(chunks[-1], sampling)], n_tokens, 1)
        history.past = n_tokens
        return batch

    def _encode_ahead(self, waiting: deque[_Batch], encoded: int, request: Request) -> int:
        decode = self._program(1, request.sampling)
        while len(waiting) < IN_FLIGHT and encoded < request.limit:
            n = min(request.tokens_per_submit, request.limit - encoded)
            waiting.append(self._submit([decode] * n, encoded, n))
            encoded += n
        return encoded

    def _submit(self, work: list[Prepared], first: int, n_tokens: int) -> _Batch:
        """Submit `work` and the read-back of the words and of `tokens[first : first + n_tokens]`."""
        buffers, state = self._resources.buffers, self._state
        nbytes = 4 * (self._n_words + n_tokens)
        staging = self._take_staging(nbytes)
        words = CopyCall(buffers[state.buffer], 0, staging.buffer, 0, 4 * self._n_words)
        tokens = CopyCall(buffers[state.tokens], 4 * first, staging.buffer, 4 * self._n_words, 4 * n_tokens)
        submission = self._resources.recorder.submit([*work, words, tokens])
        staging.request(nbytes)
        return _Batch(submission, staging, first, n_tokens)

    def _read(self, batch: _Batch) -> tuple[list[int], int, int]:
        """(tokens, n_tokens, stop) after a batch. What the GPU says is checked before it is believed."""
        nbytes = 4 * (self._n_words + batch.n_tokens)
        data = batch.staging.read(batch.submission, nbytes)
        self._idle.append(batch.staging)
        words = np.frombuffer(data, np.uint32, self._n_words)
        n_tokens, stop = (int(words[self._state.words[name]]) for name in ("n_tokens", "stop"))
        tokens: list[int] = np.frombuffer(data, np.int32, offset=4 * self._n_words).tolist()
        new = tokens[: max(0, n_tokens - batch.first)]
        ended = stop != 0
        if n_tokens > batch.first + batch.n_tokens or (not ended and len(new) < batch.n_tokens):
            raise RuntimeFailure(
                "the GPU", "lost count of its tokens", "compile the model again and report it"
            )
        if any(not 0 <= token < self._state.vocab_size for token in new):
            raise RuntimeFailure(
                "the GPU", "sampled a token outside the vocabulary", "report it with the model"
            )
        return tokens, n_tokens, stop

    def _take_staging(self, nbytes: int) -> Staging:
        for index, staging in enumerate(self._idle):
            if staging.nbytes >= nbytes:
                return self._idle.pop(index)
        size = -(-nbytes // 256) * 256
        return Staging(self._resources.device, self._resources.recorder, size)

    def _host_driven(self, request: Request) -> Iterator[int]:
        """The comparison form: state written before every step, the token awaited after it."""
        history = self._history
        self._writer.write_tokens(history.tokens, history.past)
        while True:
            n_tokens = len(history.tokens)
            token = self.host_step(n_tokens, request.limit, request.sampling)
            if token in request.stop_tokens:
                self._ended(Finish.STOP, request)
                return
            history.tokens.append(token)
            yield token
            if len(history.tokens) >= request.limit:
                self._ended(Finish.LENGTH, request)
                return

    def host_step(self, n_tokens: int, limit: int, sampling: Sampling | None = None) -> int:
        """Feed what is not in the cache yet, chunk by chunk, and read the token sampled from it."""
        history, programs = self._history, self._resources.programs
        for rows in choose_chunks(n_tokens - history.past, prefill_sizes(programs)):
            length = min(rows, n_tokens - history.past)
            self._writer.write_words(history.past, n_tokens, limit, length=length, sampling=sampling)
            work = [self._program(rows, sampling)]
            if history.past + length == n_tokens:
                batch = self._submit(work, n_tokens, 1)
            else:
                self._resources.recorder.submit(work)
            history.past += length
        data = batch.staging.read(batch.submission, 4 * (self._n_words + 1))
        self._idle.append(batch.staging)
        token = int(np.frombuffer(data, np.int32)[-1])
        if not 0 <= token < self._state.vocab_size:
            raise RuntimeFailure(
                "the GPU", "sampled a token outside the vocabulary", "report it with the model"
            )
        return token

    def _ended(self, finish: Finish, request: Request) -> None:
        if finish is Finish.LENGTH and request.capacity_limited:
            finish = Finish.CAPACITY
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the KV cache is full at {self._state.capacity} positions: generation ended; "
                    "call reset() or compile with a larger --max-length",
                    CapacityWarning,
                    stacklevel=4,
                )
        self.finish = finish

    def destroy(self) -> None:
        for staging in self._idle:
            staging.destroy()


def prefill_sizes(programs: dict[str, Prepared], kind: str = "prefill") -> list[int]:
    """Rows of the programs `prefill_N` (or another kind)."""
    return sorted(int(name.rpartition("_")[2]) for name in programs if name.startswith(f"{kind}_"))
