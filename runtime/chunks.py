"""How a prompt of any length is cut into replays of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

OVERHEAD_ROWS = 32
"""What a replay costs before its first row, in rows: reading all weights takes about as long as the
arithmetic of 32 rows of int4 weights on the GPUs measured (docs/performance.md)."""


def choose_chunks(n: int, sizes: Sequence[int]) -> list[int]:
    """Sizes of the replays that process `n` rows with the least work; the last may be partly empty.

    One row is left to `decode` (size 1), which has no kernel that opens a chunk: the host's words say that
    there is one row, so `decode` cannot follow a chunk. A replay costs `OVERHEAD_ROWS` and all its rows,
    used or not. Least holds for sizes that divide one another; others may be a few rows off.

    >>> choose_chunks(130, [16, 128])
    [128, 16]
    >>> choose_chunks(1, [16, 128])
    [1]
    """
    if n == 1:
        return [1]
    largest = max(sizes)
    full = max(0, n // largest - 1)
    rest = n - full * largest
    # Cheapest way to cover 1, 2, ... rest rows: (cost, chunks).
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for part in range(1, rest + 1):
        options = [(best[max(0, part - size)], size) for size in sizes]
        best.append(min((cost + OVERHEAD_ROWS + size, (*chunks, size)) for (cost, chunks), size in options))
    return [largest] * full + sorted(best[rest][1], reverse=True)
