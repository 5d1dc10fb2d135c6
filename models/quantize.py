"""Symmetric 4-bit blocks as MatMulNBits stores them: w = (code - 8) · scale."""

from __future__ import annotations

import numpy as np

# A scale maps the block's largest magnitude to -8 (the default algorithm's choice), or is that scale shrunk
# or grown a little, of either sign: clipping one outlier may serve the other 31 weights.
RATIOS = np.concatenate([[1.0], np.linspace(0.70, 1.15, 19)]).astype(np.float32)


def quantize_blocks(
    matrix: np.ndarray, block_size: int, scale_dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """float [n, k] → codes uint8 [n, blocks, block_size / 2], low nibble first; scales [n, blocks].

    Of the candidate scales of a block the one with the least squared error is taken, as rounded to
    `scale_dtype`; weights already on such a grid keep it. A last block is padded with zeros. Raise ValueError
    for weights that are not finite, or too large for `scale_dtype`.
    """
    n, k = matrix.shape
    if not np.isfinite(matrix).all():
        raise ValueError("a matrix has weights that are not finite")
    n_blocks = -(-k // block_size)
    padded = np.zeros((n, n_blocks * block_size), np.float32)
    padded[:, :k] = matrix
    blocks = padded.reshape(n * n_blocks, block_size)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    best_scales, best_codes = candidate(blocks, peaks / np.float32(-8), scale_dtype)
    best_errors = errors(blocks, best_scales, best_codes)
    for ratio in RATIOS:
        for sign in (1, -1):
            scales, codes = candidate(blocks, peaks / np.float32(-8 * sign) * ratio, scale_dtype)
            error = errors(blocks, scales, codes)
            better = error < best_errors
            best_scales[better], best_codes[better] = scales[better], codes[better]
            best_errors[better] = error[better]
    if not np.isfinite(best_scales).all():
        raise ValueError(f"a matrix has weights too large for scales in {scale_dtype}")
    unsigned = (best_codes + 8).astype(np.uint8)
    packed = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    scales_out: np.ndarray = best_scales.astype(scale_dtype)
    return packed.reshape(n, n_blocks, block_size // 2), scales_out.reshape(n, n_blocks)


def candidate(blocks: np.ndarray, scales: np.ndarray, scale_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(scales as stored, codes -8..7), float32 [blocks, 1] and [blocks, block_size]."""
    with np.errstate(over="ignore"):
        stored = scales.astype(scale_dtype).astype(np.float32)
    codes = np.clip(np.rint(blocks / np.where(stored == 0, np.float32(1), stored)), -8, 7)
    return stored, codes.astype(np.float32)


def errors(blocks: np.ndarray, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared error of each block, float32 [blocks]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.square(codes * scales - blocks).sum(1))
