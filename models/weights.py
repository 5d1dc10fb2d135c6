"""Seeded random weights, streamed to model.onnx.data in pieces so that gigabytes need megabytes of memory.

A tensor's values depend on the seed and its name alone, not on its place in the file: the plain, graph and
pruned exports of one decoder have the same weights. Bytes repeat for one version of NumPy.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PIECE = 1 << 22  # elements drawn at once
# 4-bit codes are uniform on 0..15, so every code occurs; their rms distance from a zero point of 8
CODE_RMS = math.sqrt(sum((code - 8) ** 2 for code in range(16)) / 16)


@dataclass(frozen=True, slots=True)
class Normal:
    std: float
    mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Codes:
    """Two uniform 4-bit codes a byte."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Within 20 % of `magnitude`; about half negative if `signed`, as the symmetric quantiser leaves them."""

    magnitude: float
    signed: bool


@dataclass(frozen=True, slots=True)
class ZeroPoints:
    """Two 4-bit zero points a byte, 6 to 9: their mean is the codes' mean, so rows keep a mean of zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    values: np.ndarray


Source = Normal | Codes | Scales | ZeroPoints | Exact


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer: `dtype` and `shape` as in the graph, `source` says where its values come from."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    source: Source

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


def quantized_magnitude(gain: float, k: int) -> float:
    """The scale that makes a row of `k` 4-bit weights turn unit inputs into outputs of deviation `gain`."""
    return gain / (math.sqrt(k) * CODE_RMS)


def draw(source: Source, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` values, float32 or uint8."""
    match source:
        case Normal(std, mean):
            values = rng.standard_normal(n, np.float32)
            values *= np.float32(std)
            values += np.float32(mean)
            return values
        case Scales(magnitude, signed):
            values = rng.random(n, np.float32)
            values = (values * np.float32(0.4) + np.float32(0.8)) * np.float32(magnitude)
            return np.where(rng.random(n, np.float32) < 0.5, -values, values) if signed else values
        case Codes():
            return rng.integers(0, 256, n, np.uint8)
        case ZeroPoints():
            return (rng.integers(0, 256, n, np.uint8) & 0x33) + np.uint8(0x66)
    raise TypeError(f"{source} is not random")


def pieces(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """The tensor's values in order, flat, in its dtype."""
    if isinstance(tensor.source, Exact):
        yield np.ascontiguousarray(tensor.source.values, tensor.dtype).reshape(-1)
        return
    key = zlib.crc32(tensor.name.encode())
    for index, start in enumerate(range(0, tensor.n_elements, PIECE)):
        rng = np.random.Generator(np.random.SFC64([seed, key, index]))
        n = min(PIECE, tensor.n_elements - start)
        yield draw(tensor.source, n, rng).astype(tensor.dtype, copy=False)


def write_tensors(
    path: Path, tensors: tuple[Tensor, ...], seed: int, progress: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Write the tensors end to end, telling `progress` the bytes of each piece. OSError on a full disk."""
    with path.open("wb") as file:
        for tensor in tensors:
            for piece in pieces(tensor, seed):
                file.write(piece.data)
                progress(piece.nbytes)
