"""Weight shards: safetensors files whose data section is a GPU buffer, byte for byte.

The header is padded with spaces so that data starts at a multiple of 256; every tensor is padded to a
multiple of 256 with a `U8` tensor of zeros named `.padding.N`, because safetensors allows no holes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..program import DType, Weight
from .names import weight_name

ALIGNMENT = 256
BLOCK_NBYTES = 4 << 20
"""Bytes of a file under one hash: small enough to check while streaming, large enough to be few."""

_DTYPE_NAMES = {
    DType.F32: "F32",
    DType.F16: "F16",
    DType.I32: "I32",
    DType.U32: "U32",
    DType.U8: "U8",
    DType.I8: "I8",
}


@dataclass(frozen=True, slots=True)
class Shard:
    """A written shard; sizes in bytes, `offsets` of the weights in the data section."""

    file: str
    nbytes: int
    data_offset: int
    offsets: tuple[int, ...]
    blocks: tuple[str, ...]


def write_shard(
    path: Path,
    weights: Sequence[Weight],
    pack: Callable[[Weight], Iterable[bytes]],
    advance: Callable[[int], None],
) -> Shard:
    """Stream `weights` into `path`, hashing on the way; `advance` hears of every byte written."""
    header, offsets = _header(weights)
    hasher = _BlockHasher()
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            hasher.update(data)
            advance(len(data))

        write(header)
        for weight in weights:
            written = 0
            for chunk in pack(weight):
                view = memoryview(chunk).cast("B")
                write(view)
                written += len(view)
            if not 0 <= weight.tensor.nbytes - written < 4:
                raise AssertionError(f"{weight.tensor.text()}: packed {written} bytes")
            write(bytes(-written % ALIGNMENT))
        nbytes = file.tell()
    return Shard(path.name, nbytes, len(header), offsets, hasher.digests())


def _header(weights: Sequence[Weight]) -> tuple[bytes, tuple[int, ...]]:
    entries: dict[str, object] = {}
    offsets = []
    end = 0
    for i, weight in enumerate(weights):
        tensor = weight.tensor
        raw = tensor.dtype.nbytes
        for n in tensor.shape:
            raw *= n
        offsets.append(end)
        entries[weight_name(tensor.name)] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + raw],
        }
        end += raw
        if padding := -end % ALIGNMENT:
            entries[f".padding.{i}"] = {
                "dtype": "U8",
                "shape": [padding],
                "data_offsets": [end, end + padding],
            }
            end += padding
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    size = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return size.to_bytes(8, "little") + text.ljust(size, b" "), tuple(offsets)


class _BlockHasher:
    """SHA-256 of consecutive blocks of a stream."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = hashlib.sha256()
        self._room = BLOCK_NBYTES

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view) >= self._room:
            self._hash.update(view[: self._room])
            view = view[self._room :]
            self._done.append(self._hash.hexdigest())
            self._hash = hashlib.sha256()
            self._room = BLOCK_NBYTES
        self._hash.update(view)
        self._room -= len(view)

    def digests(self) -> tuple[str, ...]:
        tail = [self._hash.hexdigest()] if self._room < BLOCK_NBYTES else []
        return (*self._done, *tail)
