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
from .schema import Shard

MAX_HEADER_NBYTES = 16 << 20
ALIGNMENT = 256
PADDING = ".padding."
"""Prefix of the header entries that fill the gaps between aligned tensors: u8, fewer than 256, zero."""

DTYPE_NBYTES = {"F32": 4, "F16": 2, "I32": 4, "U32": 4, "U8": 1, "I8": 1}
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
        RuntimeFailure: a shard is missing, changed, of another size, or its header has holes or overlaps.
    """
    for shard in artifact.manifest.shards:
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
            check_header(shard, _read_header(name, shard, file))
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


def tensor_names(artifact: Artifact, index: int) -> dict[int, str]:
    """Names of the tensors in a shard, by their offset in its buffer.

    Raises:
        RuntimeFailure: as `load_shards`.
    """
    shard = artifact.manifest.shards[index]
    name = f"weights/{shard.file}"
    with inside(artifact.folder, name).open("rb") as file:
        return check_header(shard, _read_header(name, shard, file))


def check_header(shard: Shard, header: dict[str, Any]) -> dict[int, str]:
    """Check a safetensors header: every byte belongs to one tensor or declared padding.

    Returns the names of the tensors by their offset.

    Raises:
        RuntimeFailure: naming the tensor that does not fit.
    """
    name = f"weights/{shard.file}"
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RuntimeFailure(name, "has malformed metadata in its header", RECOMPILE)
    entries = []
    for tensor, entry in header.items():
        dtype, begin, end = _entry(name, tensor, entry)
        padding = tensor.startswith(PADDING)
        if padding and not (dtype == "U8" and 0 < end - begin < ALIGNMENT):
            raise RuntimeFailure(name, f"has {tensor[:80]!r}, which is no padding", RECOMPILE)
        if not padding and begin % ALIGNMENT:
            raise RuntimeFailure(name, f"has {tensor[:80]!r} at an odd place", RECOMPILE)
        entries.append((begin, end, tensor))
    position = 0
    for begin, end, tensor in sorted(entries):
        if begin != position:
            what = "a hole before" if begin > position else "an overlap at"
            raise RuntimeFailure(name, f"has {what} {tensor[:80]!r}", RECOMPILE)
        position = end
    if position != shard.nbytes - shard.data_offset:
        raise RuntimeFailure(name, "has bytes behind its last tensor", RECOMPILE)
    return {begin: tensor for begin, _, tensor in entries if not tensor.startswith(PADDING)}


def _entry(name: str, tensor: str, entry: Any) -> tuple[str, int, int]:
    """dtype, begin and end of one header entry, which may hold anything."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            len(entry) == 3
            and dtype in DTYPE_NBYTES
            and all(type(dim) is int and 0 <= dim < 2**53 for dim in shape)
            and 0 <= begin <= end < 2**53
            and prod(shape) * DTYPE_NBYTES[dtype] == end - begin
        ):
            return dtype, begin, end
    raise RuntimeFailure(name, f"has a malformed entry for {tensor[:80]!r}", RECOMPILE)
