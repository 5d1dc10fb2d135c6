"""Layers, found by their kernels: runs of a schedule that repeat, so that a report shows each once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD = 256
"""Kernels of the longest block looked for: bounds the work for graphs of thousands of kernels."""

LEAST_SAVED = 2
"""Kernels that a repetition must hide: two parts of a split LM head are easier read one after the other."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` repetitions of `period` kernels, from kernel `start` on; `count` 1 is a stretch without any."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.count

    def members(self, i: int) -> range:
        """The kernels that repeat kernel `start + i`, itself first."""
        return range(self.start + i, self.end, self.period)


def repeats(signatures: Sequence[Hashable]) -> tuple[Run, ...]:
    """Cut a schedule into runs, in order and without a gap:  a b c b c b c d  =>  a · (b c)×3 · d

    The run that saves most is taken first, then those before and after it.
    """
    numbers: dict[Hashable, int] = {}
    ids = np.array([numbers.setdefault(each, len(numbers)) for each in signatures], dtype=np.int64)
    found: list[Run] = []
    pending = [(0, len(ids))] if len(ids) else []
    while pending:
        start, end = pending.pop()
        best = _best(ids[start:end])
        if best is None:
            found.append(Run(start, end - start, 1))
            continue
        run = Run(start + best.start, best.period, best.count)
        found.append(run)
        pending += [(a, b) for a, b in ((start, run.start), (run.end, end)) if a < b]
    return tuple(sorted(found, key=lambda run: run.start))


def _best(ids: NDArray[np.int64]) -> Run | None:
    """The run that hides the most kernels; of equals the one of the shortest block."""
    best, saved = None, LEAST_SAVED - 1
    for period in range(1, min(MAX_PERIOD, len(ids) // 2) + 1):
        same = np.concatenate(([False], ids[:-period] == ids[period:], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            count = (end - start) // period + 1
            if (count - 1) * period > saved:
                best, saved = Run(start, period, count), (count - 1) * period
    return best
