"""Sampling in NumPy: the same integers as the GPU's, and an independent one in floats, as transformers does.

`draw` is exact: the same logits, parameters and seed give the same token as the kernels. `probabilities`
shares nothing with them; the two are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from webgpu_compile.runtime.sampling import DRAW, Sampling

POLYNOMIAL = (0x71D9C, 0x5375C2, 0x273B234, 0xE349A30, 0x3D7F5603, 0xB17215E1)
NEVER = -np.inf


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox-4x32-10 (Salmon et al. 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def penalised(logits: np.ndarray, history: Sequence[int], words: dict[str, int]) -> np.ndarray:
    """f32 logits with the penalty; NaN as -inf, +inf as the greatest f32."""
    penalty, inverse = (
        np.uint32(words[name]).view(np.float32)
        for name in ("repetition_penalty", "inverse_repetition_penalty")
    )
    scores = logits.astype(np.float32)
    if penalty != 1:
        seen = np.unique(np.asarray(history, np.int64))
        with np.errstate(all="ignore"):
            scores[seen] *= np.where(scores[seen] > 0, inverse, penalty)
    scores[np.isnan(scores)] = NEVER
    return np.minimum(scores, np.finfo(np.float32).max)


def weights_of(scores: np.ndarray, words: dict[str, int]) -> np.ndarray:
    """2^31 · exp((score - greatest) / temperature), by the kernel's polynomial; u64."""
    scale = np.uint32(words["inverse_temperature"]).view(np.float32)
    with np.errstate(all="ignore"):
        below = (scores.max() - scores) * scale
    possible = (scores > NEVER) & (below < 2**31)
    x = np.where(possible, below, 0).astype(np.uint64)
    fraction, total = (x << np.uint64(6)) & np.uint64(0xFFFFFFFF), np.full(x.shape, POLYNOMIAL[0], np.uint64)
    for coefficient in POLYNOMIAL[1:]:
        total = np.uint64(coefficient) - ((fraction * total) >> np.uint64(32))
    total = np.uint64(2**31) - ((fraction * total) >> np.uint64(33))
    return np.where(possible, total >> (x >> np.uint64(26)), 0).astype(np.uint64)


def surviving(scores: np.ndarray, weights: np.ndarray, words: dict[str, int]) -> np.ndarray:
    """The weights after top-k, top-p and min-p."""
    order = np.argsort(-scores, kind="stable")
    kept = weights > 0
    if 0 < words["top_k"] < len(scores):
        kept &= scores >= scores[order[words["top_k"] - 1]]
    if words["top_p"]:
        least = max(1, int(weights[kept].sum()) * words["top_p"] >> 32)
        sums = np.cumsum(np.where(kept, weights, 0)[order])
        kept &= scores >= scores[order[np.searchsorted(sums, least)]]
    kept &= weights >= words["min_p"]
    return np.where(kept, weights, 0).astype(np.uint64)


def draw(logits: np.ndarray, history: Sequence[int], sampling: Sampling) -> int:
    """The token that the GPU must draw behind `history`."""
    words = sampling.words()
    scores = penalised(logits, history, words)
    if scores.max() == NEVER:
        return 0
    weights = surviving(scores, weights_of(scores, words), words)
    sums = np.cumsum(weights)
    key = (words["seed_low"], words["seed_high"])
    random = philox((len(history), 0, 0, 0), key)[0] if words["sampling"] == DRAW else 0
    return int(np.searchsorted(sums, (int(sums[-1]) * random >> 32) + 1))


def probabilities(logits: np.ndarray, history: Sequence[int], sampling: Sampling) -> np.ndarray:
    """What transformers' processors and warpers leave, renormalised; float64."""
    scores = logits.astype(np.float64)
    seen = np.unique(np.asarray(history, np.int64))
    penalty = sampling.repetition_penalty
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    scores /= sampling.temperature
    if sampling.top_k:
        scores[scores < np.sort(scores)[-min(sampling.top_k, len(scores))]] = NEVER
    if sampling.top_p < 1:
        order = np.argsort(scores, kind="stable")
        removed = np.cumsum(softmax(scores[order])) <= 1 - sampling.top_p
        removed[-1:] = False
        scores[order[removed]] = NEVER
    p = softmax(scores)
    scores[p < sampling.min_p * p.max()] = NEVER
    return softmax(scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(scores - scores.max())
    return e / e.sum()
