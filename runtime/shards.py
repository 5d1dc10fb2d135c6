"""Weights: safetensors files, checked and streamed into GPU buffers block by block.

A block is read, hashed and uploaded from the same bytes in memory: nothing that changes on the disk in
between gets through, and a file that shrinks is an error and not a crash, as it would be with a mapping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from threading import Lock
from typing import IO, Any

from .artifact import RECOMPILE, Artifact, inside, strict_json
from .errors import RuntimeFailure
from .ports import STORAGE_NBYTES
from .schema import Shard

MAX_HEADER_NBYTES = 16 << 20
ALIGNMENT = 256
PADDING = ".padding."
"""Prefix of the header entries that fill the gaps between aligned tensors: u8, fewer than 256, zero."""

SAFETENSORS = {"F32": "f32", "F16": "f16", "I32": "i32", "U32": "u32", "U8": "u8", "I8": "i8"}
READ_AHEAD = 8
"""Blocks read and hashed at once."""


def load_shards(
    artifact: Artifact,
    wanted: set[int],
    upload: Callable[[int, int, memoryview], None],
    *,
    verify: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Check the shards whose buffers are in `wanted` and hand their data to `upload(buffer, offset, bytes)`.

    The bytes are good for that call only.

    Args:
        verify: compare the hash of every block; the headers are checked in any case.
        progress: called with the number of bytes after each block.

    Raises:
        RuntimeFailure: a shard is missing, changed, of another size, or its header and the manifest disagree.
    """
    for index, shard in enumerate(artifact.manifest.shards):
        if shard.buffer not in wanted:
            continue
        name = f"weights/{shard.file}"
        path = inside(artifact.folder, name)
        if path.stat().st_size != shard.nbytes:
            raise RuntimeFailure(
                name,
                f"has {path.stat().st_size} bytes, not {shard.nbytes}",
                "copy the artifact or compile again",
            )
        with path.open("rb") as file:
            check_header(artifact, index, _read_header(name, shard, file))
            file.seek(0)
            for start, data in _blocks(name, shard, file, verify):
                first = max(start, shard.data_offset)
                if first < start + len(data):
                    upload(shard.buffer, first - shard.data_offset, data[first - start :])
                if progress is not None:
                    progress(len(data))


def _blocks(name: str, shard: Shard, file: IO[bytes], verify: bool) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of each block, in order, read and hashed a few ahead on other threads.

    The bytes hold until the next block is asked for: their memory is used again, since fresh pages cost as
    much as the hash.
    """
    reading = Lock()

    def fetch(number: int, room: bytearray) -> memoryview:
        size = min(shard.block_nbytes, shard.nbytes - number * shard.block_nbytes)
        data = memoryview(room)[:size]
        with reading:
            file.seek(number * shard.block_nbytes)
            if file.readinto(data) != size:  # type: ignore[attr-defined]
                raise RuntimeFailure(name, "shrank while it was read", RECOMPILE)
        if verify and hashlib.sha256(data).hexdigest() != shard.blocks[number]:
            raise RuntimeFailure(
                name,
                f"was changed after it was compiled (block {number} has another hash)",
                "copy the artifact or compile again",
            )
        return data

    n_blocks = len(shard.blocks)
    rooms = [bytearray(min(shard.block_nbytes, shard.nbytes)) for _ in range(min(READ_AHEAD, n_blocks))]
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="weights") as pool:
        ahead = [pool.submit(fetch, number, room) for number, room in enumerate(rooms)]
        for number in range(n_blocks):
            slot = number % len(rooms)
            yield number * shard.block_nbytes, ahead[slot].result()
            if number + len(rooms) < n_blocks:
                ahead[slot] = pool.submit(fetch, number + len(rooms), rooms[slot])


def _read_header(name: str, shard: Shard, file: IO[bytes]) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, then JSON padded with spaces up to the data."""
    size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_NBYTES or size + 8 != shard.data_offset:
        raise RuntimeFailure(name, "has a header of another size than the manifest says", RECOMPILE)
    header = strict_json(name, file.read(size))
    if not isinstance(header, dict):
        raise RuntimeFailure(name, "has no safetensors header", RECOMPILE)
    return header


def check_header(artifact: Artifact, index: int, header: dict[str, Any]) -> None:
    """Compare a safetensors header with the manifest: every byte belongs to one tensor or declared padding.

    Raises:
        RuntimeFailure: naming the tensor that does not fit.
    """
    shard = artifact.manifest.shards[index]
    name = f"weights/{shard.file}"
    weights = {weight.name: weight for weight in artifact.manifest.weights if weight.shard == index}
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RuntimeFailure(name, "has malformed metadata in its header", RECOMPILE)
    entries = []
    for tensor, entry in header.items():
        dtype, shape, begin, end = _entry(name, tensor, entry)
        entries.append((begin, end, tensor))
        weight = weights.pop(tensor, None)
        if weight is None:
            if not (tensor.startswith(PADDING) and dtype == "u8" and 0 < end - begin < ALIGNMENT):
                raise RuntimeFailure(
                    name, f"has the tensor {tensor[:80]!r} that the manifest lacks", RECOMPILE
                )
        elif (dtype, shape, begin) != (weight.dtype, weight.shape, weight.offset):
            raise RuntimeFailure(name, f"and the manifest disagree about {tensor[:80]!r}", RECOMPILE)
    if weights:
        raise RuntimeFailure(name, f"lacks the tensor {next(iter(weights))[:80]!r}", RECOMPILE)
    position = 0
    for begin, end, tensor in sorted(entries):
        if begin != position:
            what = "a hole before" if begin > position else "an overlap at"
            raise RuntimeFailure(name, f"has {what} {tensor[:80]!r}", RECOMPILE)
        position = end
    if position != shard.nbytes - shard.data_offset:
        raise RuntimeFailure(name, "has bytes behind its last tensor", RECOMPILE)


def _entry(name: str, tensor: str, entry: Any) -> tuple[str, list[int], int, int]:
    """dtype, shape, begin and end of one header entry, which may hold anything."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            len(entry) == 3
            and dtype in SAFETENSORS
            and all(type(dim) is int and 0 <= dim < 2**53 for dim in shape)
            and 0 <= begin <= end < 2**53
            and prod(shape) * STORAGE_NBYTES[SAFETENSORS[dtype]] == end - begin
        ):
            return SAFETENSORS[dtype], shape, begin, end
    raise RuntimeFailure(name, f"has a malformed entry for {tensor[:80]!r}", RECOMPILE)
