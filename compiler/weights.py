"""How the bytes of a model's initializers become weight tensors: one function per layout.

Sources are arrays, usually views of memory-mapped files; a layout yields the tensor's bytes in order,
piece by piece, and holds no more than a few pieces at a time, so that a table of gigabytes passes through.
`Weight.rows` selects rows of *each* source before they are joined; with ("n_rows", n) in `Weight.fill` the
sources are taken as [n, ...] even where the model stores them flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from .program import DType, Weight

PIECE_NBYTES = 8 << 20
"""About how many bytes a layout yields at a time."""

NUMPY: Mapping[DType, np.dtype[Any]] = MappingProxyType(
    {
        DType.F32: np.dtype("<f4"),
        DType.F16: np.dtype("<f2"),
        DType.I32: np.dtype("<i4"),
        DType.U32: np.dtype("<u4"),
        DType.U8: np.dtype("u1"),
        DType.I8: np.dtype("i1"),
    }
)
"""Element types as they lie in the shards: little-endian."""

Layout = Callable[[Sequence[np.ndarray], Weight], Iterator[np.ndarray]]


def pack(weight: Weight, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The bytes of a weight's tensor, in pieces; `arrays` by the initializer names of its sources.

    Raises ValueError where layout and tensor do not fit: another number of bytes, or values lost in the
    tensor's element type.
    """
    nbytes = 0
    sources = [arrays[source.initializer] for source in weight.sources]
    for piece in LAYOUTS[weight.layout](sources, weight):
        data = piece.tobytes()
        nbytes += len(data)
        yield data
    missing = weight.tensor.nbytes - nbytes
    if not 0 <= missing < 4:
        raise ValueError(f"weight {weight.tensor.name}: {nbytes} bytes packed of {weight.tensor.nbytes}")
    if missing:
        yield bytes(missing)


def copy(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """The values of the one source in the tensor's element type (i64 narrowed, f16 widened, bool as u32)."""
    if len(sources) != 1:
        raise ValueError(f"weight {weight.tensor.name}: copy takes one source, got {len(sources)}")
    yield from concat_rows(sources, weight)


def concat_rows(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """Sources one after the other along the first axis: q, k, v; gate, up; short and long rotary tables."""
    for source in sources:
        for piece in _pieces(_selected(source, weight)):
            yield _converted(piece, weight)


def pad_rows(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """[n, k] => [n, padded_k], the width of the tensor, with zeros; several sources as in `concat_rows`."""
    for source in sources:
        for piece in _pieces(_selected(source, weight)):
            rows: np.ndarray = np.zeros((len(piece), weight.tensor.shape[-1]), NUMPY[weight.tensor.dtype])
            rows[:, : piece.shape[1]] = _converted(piece, weight)
            yield rows


def transpose(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """ONNX MatMul's B [k, n] => [n, padded_k], the width of the tensor; several sources joined along n.

    In square tiles, because a transposed copy of a whole row range misses the cache at every element.
    """
    tile = 256
    dtype = NUMPY[weight.tensor.dtype]
    width = weight.tensor.shape[-1]
    for source in sources:
        k, n = source.shape
        begin, end = weight.rows or (0, n)
        per_piece = max(PIECE_NBYTES // (width * dtype.itemsize) // tile, 1) * tile
        for first in range(begin, end, per_piece):
            last = min(first + per_piece, end)
            rows = np.zeros((last - first, width), dtype)
            for row in range(0, last - first, tile):
                for column in range(0, k, tile):
                    block = source[column : column + tile, first + row : min(first + row + tile, last)]
                    to = rows[row : row + block.shape[1], column : column + block.shape[0]]
                    to[...] = _converted(block, weight).T
            yield rows


def sections(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """Bytes of each source, whatever its type, each padded to 4 bytes: a linear layer's parameters.

    Sources of one kind (the scales of gate and up) are joined without padding: `Weight.fill` gives, in
    order, how many sources each section has, as ("section", count).
    """
    counts = [int(count) for key, count in weight.fill if key == "section"] or [1] * len(sources)
    if sum(counts) != len(sources):
        raise ValueError(f"weight {weight.tensor.name}: {counts} sections of {len(sources)} sources")
    remaining = iter(sources)
    for count in counts:
        nbytes = 0
        for _ in range(count):
            for piece in _pieces(_selected(next(remaining), weight)):
                nbytes += piece.nbytes
                yield piece.astype(piece.dtype.newbyteorder("<"), copy=False)
        yield np.zeros(-nbytes % 4, np.uint8)


def first_rows(sources: Sequence[np.ndarray], weight: Weight) -> Iterator[np.ndarray]:
    """The first rows of each source, as many as `Weight.fill` says for it in order, as ("rows", count)."""
    counts = [int(count) for key, count in weight.fill if key == "rows"]
    for source, count in zip(sources, counts, strict=True):
        for piece in _pieces(source[:count]):
            yield _converted(piece, weight)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.__name__: layout for layout in (copy, concat_rows, pad_rows, transpose, sections, first_rows)}
)


def _selected(source: np.ndarray, weight: Weight) -> np.ndarray:
    """The rows of a source that belong to the weight."""
    if weight.rows is None:
        return source
    n_rows = dict(weight.fill).get("n_rows")
    if n_rows is not None:
        source = source.reshape(int(n_rows), -1)
    return source[weight.rows[0] : weight.rows[1]]


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in ranges of its first axis of about PIECE_NBYTES."""
    if array.ndim == 0:
        yield array
        return
    row_nbytes = max(array[:1].nbytes, 1)
    step = max(PIECE_NBYTES // row_nbytes, 1)
    for first in range(0, len(array), step):
        yield array[first : first + step]


def _converted(piece: np.ndarray, weight: Weight) -> np.ndarray:
    """A piece in the element type of the weight; only conversions that keep every value."""
    to = NUMPY[weight.tensor.dtype]
    if piece.dtype == to or (to == np.uint8 and piece.dtype.itemsize == 1):
        return piece
    if piece.dtype.kind in "iu" and to.kind in "iu":
        limits = np.iinfo(to)
        if piece.min() < limits.min or piece.max() > limits.max:
            raise ValueError(f"weight {weight.tensor.name}: values out of the range of {weight.tensor.dtype}")
        return piece.astype(to)
    if np.can_cast(piece.dtype, to, "safe"):
        return piece.astype(to)
    raise ValueError(
        f"weight {weight.tensor.name}: {piece.dtype} values in a tensor of {weight.tensor.dtype}"
    )
