"""The host's side of a decoder's state: the history, and the words written once per call."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import RuntimeFailure
from .sampling import Sampling
from .schema import Sequence as SequenceState


@dataclass(slots=True)
class History:
    """The sequence as the caller knows it.

    `past` positions are in the KV cache for certain; the tokens behind them are known but not yet fed.
    The GPU may have run ahead: rows of the cache behind `past` are overwritten before they are read.
    """

    tokens: list[int] = field(default_factory=list)
    past: int = 0

    def rewind(self, n_tokens: int) -> None:
        """Forget the tokens behind the first `n_tokens`."""
        del self.tokens[n_tokens:]
        self.past = min(self.past, n_tokens)

    def rewind_for_logits(self) -> None:
        """Leave at least one token to feed, so that the next step has logits to sample from."""
        self.past = max(0, min(self.past, len(self.tokens) - 1))


def token_ids(ids: Any, vocab_size: int, what: str = "the prompt") -> list[int]:
    """Token ids as a list, from a list, tuple or integer array of any width.

    Raises:
        RuntimeFailure: not one-dimensional integers (a leading batch axis of 1 is fine), or out of range.
    """
    if isinstance(ids, (str, bytes)):
        raise RuntimeFailure(what, "is text, not token ids", "encode it with the model's tokenizer first")
    if not isinstance(ids, np.ndarray):
        try:
            ids = np.array([operator.index(token) for token in ids], dtype=object)
        except TypeError:
            ids = np.asarray(ids)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise RuntimeFailure(what, f"has shape {list(ids.shape)}", "give one sequence: [1, S] or S token ids")
    if ids.size and ids.dtype != object and ids.dtype.kind not in "iu":
        raise RuntimeFailure(what, f"is {ids.dtype}, not integers", "give token ids as int64 or int32")
    for position, token in enumerate(result := [int(token) for token in ids]):
        if not 0 <= token < vocab_size:
            raise RuntimeFailure(
                what,
                f"has the token {token} at position {position}, outside the vocabulary of {vocab_size}",
                "use the tokenizer that belongs to this model",
            )
    return result


def check_capacity(n_tokens: int, known: int, capacity: int) -> None:
    """Refuse what does not fit the cache.

    Raises:
        RuntimeFailure: `n_tokens`, of which `known` are history, are more than `capacity`.
    """
    if n_tokens <= capacity:
        return
    if known:
        new = n_tokens - known
        problem = f"is full: {known} tokens of history and {new} new ones exceed its {capacity} positions"
        hint = "call reset(), give fewer tokens, or compile with a larger --max-length"
    else:
        problem = f"holds {capacity} positions, and the prompt has {n_tokens} tokens"
        hint = "shorten the prompt or compile with a larger --max-length"
    raise RuntimeFailure("the KV cache", problem, hint)


@dataclass(frozen=True, slots=True)
class Writer:
    """Uploads the state of a call: the new token ids and the sequence's words, in two or three writes."""

    state: SequenceState
    queue: Any
    words: Any
    tokens: Any

    def write_tokens(self, tokens: Sequence[int], first: int) -> None:
        """`tokens[first:]` to their positions."""
        if first < len(tokens):
            self.queue.write_buffer(self.tokens, 4 * first, np.array(tokens[first:], dtype=np.int32))

    def write_words(
        self,
        past: int,
        n_tokens: int,
        limit: int,
        stop_tokens: Iterable[int] = (),
        *,
        length: int = 1,
        sampling: Sampling | None = None,
    ) -> None:
        """Every word that the artifact has, contiguous ones together. Greedy unless `sampling` is given."""
        stop = list(stop_tokens)
        total = past + length
        values = {
            "past_length": past,
            "length": length,
            "total_length": total,
            "call_length": n_tokens,
            "n_tokens": n_tokens,
            "limit": limit,
            "stop": 0,
            "n_stop_tokens": len(stop),
            **(sampling or Sampling()).words(),
        }
        index = self.state.words
        placed = {index[name]: value for name, value in values.items() if name in index}
        if "stop_tokens" in index:
            placed |= {index["stop_tokens"] + i: token for i, token in enumerate(stop)}
        for first, run in contiguous(placed):
            self.queue.write_buffer(self.words, 4 * first, np.array(run, dtype=np.uint32))


def contiguous(words: dict[int, int]) -> list[tuple[int, list[int]]]:
    """Values by index  =>  (first index, values) of each run without a gap."""
    runs: list[tuple[int, list[int]]] = []
    for index in sorted(words):
        if runs and index == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(words[index])
        else:
            runs.append((index, [words[index]]))
    return runs
