"""RoPE caches as the exporter's, which come from torch.

torch computes in float32 with vector kernels accurate to 1 ulp. Here every step is taken in float32 too, in
the same order, and pow, cos and sin are rounded once from float64. In float16 the caches are then equal but
for 0 to 3 elements in 65,536 on a rounding boundary, 1 ulp apart (and one column of Phi-4-mini's, whose
frequency differs by an ulp of float32: 1.7 % of that column, 1 ulp apart).
"""

from __future__ import annotations

import math

import numpy as np

from .config import DecoderConfig, DefaultRope, Llama3Rope, LongRope

Caches = tuple[np.ndarray, np.ndarray]
F32 = np.float32
ROWS = 8192  # positions per step: bounds the float64 temporaries


def inverse_frequencies(
    theta: float, rotary_size: int, factors: tuple[float, ...] | None = None
) -> np.ndarray:
    """float32 [rotary_size / 2]: 1 / (factor · theta^(2i / rotary_size))."""
    exponents = np.arange(0, rotary_size, 2, dtype=np.float32) / F32(rotary_size)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    scaled = powers if factors is None else np.asarray(factors, np.float32) * powers
    return (F32(1.0) / scaled).astype(np.float32)


def rescale_llama3(frequencies: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Divide low frequencies by `factor`, keep high ones, blend between (float32 throughout)."""
    one, factor = F32(1.0), F32(rope.factor)
    low, high = F32(rope.low_freq_factor), F32(rope.high_freq_factor)
    # torch divides a number by a tensor as number · (1 / tensor): two roundings, kept here
    wavelengths = one / frequencies * F32(2 * math.pi)
    smooth = (one / wavelengths * F32(rope.original_positions) - low) / (high - low)
    blend = (one - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(
        wavelengths > rope.original_positions / rope.low_freq_factor, frequencies / factor, blend
    )
    keep = wavelengths < rope.original_positions / rope.high_freq_factor
    return np.where(keep, frequencies, scaled).astype(np.float32)


def long_rope_magnitude(max_positions: int, original_positions: int) -> float:
    """sqrt(1 + ln(scale) / ln(original)), which LongRoPE multiplies cos and sin by (LongRoPE paper, 3.3)."""
    return math.sqrt(1 + math.log(max_positions / original_positions) / math.log(original_positions))


def caches(frequencies: np.ndarray, n_positions: int, magnitude: float, dtype: np.dtype) -> Caches:
    """cos and sin of position · frequency, each [n_positions, rotary_size / 2] in `dtype`."""
    cos = np.empty((n_positions, frequencies.size), dtype)
    sin = np.empty_like(cos)
    for start in range(0, n_positions, ROWS):
        positions = np.arange(start, min(start + ROWS, n_positions), dtype=np.float32)
        angles = np.outer(positions, frequencies).astype(np.float64)
        rows = slice(start, start + positions.size)
        cos[rows] = np.cos(angles).astype(np.float32) * F32(magnitude)
        sin[rows] = np.sin(angles).astype(np.float32) * F32(magnitude)
    return cos, sin


def rope_caches(config: DecoderConfig, dtype: np.dtype) -> Caches:
    """The one cos/sin pair of a model without LongRoPE, [max_positions, rotary_size / 2]."""
    rope = config.rope
    assert isinstance(rope, DefaultRope | Llama3Rope)
    frequencies = inverse_frequencies(rope.theta, config.rotary_size)
    if isinstance(rope, Llama3Rope):
        frequencies = rescale_llama3(frequencies, rope)
    return caches(frequencies, config.max_positions, 1.0, dtype)


def long_rope_caches(config: DecoderConfig, dtype: np.dtype) -> tuple[Caches, Caches]:
    """(short, long): [original_positions, …] with short factors, [max_positions, …] with long ones."""
    rope = config.rope
    assert isinstance(rope, LongRope)
    magnitude = long_rope_magnitude(config.max_positions, rope.original_positions)
    short = inverse_frequencies(rope.theta, config.rotary_size, rope.short_factors)
    long = inverse_frequencies(rope.theta, config.rotary_size, rope.long_factors)
    return (
        caches(short, rope.original_positions, magnitude, dtype),
        caches(long, config.max_positions, magnitude, dtype),
    )
