"""Perplexity of a text: how well a model predicts it, in one figure that any change to a kernel moves.

The text's ids are cut into windows that do not overlap; every token but a window's first is predicted from
those before it in the window, and no special tokens are added: `models/demo/evaluate.py` does the same in
ONNX Runtime. Windows are fed by the captured programs that give logits of every position. The softmax is
computed on the host in float64 from the logits read back: this measures a model, it does not serve one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import RuntimeFailure
from .ports import Array
from .session import Session

WINDOW = 1024
"""Tokens of a window where the capacity allows it."""
MAX_LOGITS = 1 << 26
"""Logits read back at once: 512 MiB as float64."""


@dataclass(frozen=True, slots=True)
class Score:
    """`loss` is the mean over `n_tokens` predicted tokens, in nats; `n_bytes` is the UTF-8 they stand for."""

    loss: float
    n_tokens: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        """e^loss; infinite where that is more than a float holds."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.loss * self.n_tokens / (max(self.n_bytes, 1) * math.log(2))

    def text(self) -> str:
        return (
            f"loss {self.loss:.4f}  perplexity {self.perplexity:.3f}  bits per byte {self.bits_per_byte:.3f}"
            f"  ({self.n_tokens} tokens)"
        )


def measure_perplexity(
    session: Session,
    tokenizer: Any,
    text: str,
    *,
    n_tokens: int | None = None,
    window: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Score:
    """Score a text. The session's sequence is gone afterwards.

    Args:
        session: a language model.
        tokenizer: its `tokenizers.Tokenizer`.
        text: what to predict.
        n_tokens: only the first so many tokens; None for all.
        window: tokens of a window; None for 1024, or the capacity if it is less.
        progress: called after each window with the tokens done, those of the text, and the loss so far.

    Raises:
        RuntimeFailure: fewer than two tokens; a window that does not fit the cache.
    """
    capacity = session.capacity
    if capacity is None:
        raise RuntimeFailure("perplexity", "needs a language model", "use run() for this model")
    window = min(WINDOW, capacity) if window is None else window
    if not 2 <= window <= capacity:
        raise RuntimeFailure(
            "the window", f"has {window} tokens", f"give 2 to {capacity}, the KV cache's size"
        )
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:n_tokens]
    if len(ids) < 2:
        raise RuntimeFailure("the text", f"has {len(ids)} tokens", "give one of at least two tokens")
    total, count, n_bytes = 0.0, 0, 0
    for start in range(0, len(ids) - 1, window):
        row = ids[start : start + window]
        total += token_losses(session, row)
        count += len(row) - 1
        n_bytes += len(tokenizer.decode(row[1:], skip_special_tokens=False).encode())
        if progress is not None:
            progress(start + len(row), len(ids), total / count)
    session.reset()
    return Score(total / count, count, n_bytes)


def token_losses(session: Session, row: Sequence[int]) -> float:
    """Sum of -ln p over each token of `row` after the first, from an empty cache, in float64."""
    sequence = session.manifest.sequence
    assert sequence is not None
    # A model that was exported with the last position's logits only is fed token by token.
    n_rows = max(1, MAX_LOGITS // sequence.vocab_size) if sequence.all_logits else 1
    session.reset()
    total = 0.0
    for start in range(0, len(row) - 1, n_rows):
        part = row[start : min(start + n_rows, len(row) - 1)]
        logits = session.run({sequence.ids: np.array([part])})[sequence.logits][0]
        total += float(losses(logits, np.array(row[start + 1 : start + 1 + len(part)])).sum())
    return total


def losses(logits: Array, targets: Array) -> Array:
    """float64 [S]: -ln softmax(logits [S, V])[targets [S]]."""
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    chosen = np.take_along_axis(values, targets[:, None], 1)[:, 0]
    result: Array = np.log(np.exp(values, out=values).sum(1)) - chosen
    return result
