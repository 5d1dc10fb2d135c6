"""The captured graph: programs as arrays of native handles, re-encoded by a loop that does nothing else.

WebGPU has no reusable compute command buffer. What can be kept is everything but the calls themselves, so
this module calls wgpu-native on prepared handles (`native.py`): a quarter of the CPU time of wgpu-py's public
calls. Two thirds of what is left is wgpu-native's own, when an encoder is finished: it validates there, works
out barriers and calls the driver. That lets go of the GIL, so on a computer with cores to spare the tokens of
a submission are encoded by several threads, a command buffer each.

Raw handles keep nothing alive: `Prepared` and `Recorder` hold the wgpu-py objects beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import c_uint64
from dataclasses import dataclass, replace
from typing import Any

from wgpu.backends.wgpu_native import ffi, lib

from .native import (
    NO_OFFSETS,
    dispatch,
    dispatch_indirect,
    native_errors,
    pointer,
    set_bind_group,
    set_pipeline,
)

MAX_THREADS = 4
CORES_PER_THREAD = 4
"""Cores that a thread of ours may have for itself: the driver and the caller want theirs."""
MIN_PIECE = 128
"""Dispatches that are worth handing to a thread."""


@dataclass(frozen=True, slots=True)
class DispatchCall:
    """One dispatch as wgpu-py objects; `indirect` (a buffer and an offset) replaces `grid`."""

    pipeline: Any
    bind_group: Any
    grid: tuple[int, int, int]
    indirect: tuple[Any, int] | None = None


@dataclass(frozen=True, slots=True)
class CopyCall:
    """One copy between buffers (wgpu-py objects)."""

    source: Any
    source_offset: int
    target: Any
    target_offset: int
    nbytes: int


Handles = tuple[Any, Any, int, int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program ready for replay. `parts` alternate: a list of dispatches is one compute pass.

    A dispatch is (pipeline or None if it is still set, bind group, x, y, z), handles as pointers; an indirect
    one has its buffer in x, its offset in y and -1 in z.
    """

    parts: tuple[list[Handles] | CopyCall, ...]
    keep: tuple[object, ...]
    n_dispatches: int


def prepare(calls: Iterable[DispatchCall | CopyCall]) -> Prepared:
    """Turn calls into arrays of handles. Copies split the compute pass."""
    parts: list[list[Handles] | CopyCall] = []
    calls = tuple(calls)
    pipeline = None
    for call in calls:
        if isinstance(call, CopyCall):
            parts.append(call)
            continue
        if not parts or isinstance(parts[-1], CopyCall):
            parts.append([])
            pipeline = None
        handle = None if call.pipeline is pipeline else pointer(call.pipeline._internal)
        pipeline = call.pipeline
        grid: tuple[Any, Any, int] = call.grid
        if call.indirect is not None:
            buffer, offset = call.indirect
            grid = pointer(buffer._internal), c_uint64(offset), -1
        part = parts[-1]
        assert isinstance(part, list)
        part.append((handle, pointer(call.bind_group._internal), *grid))
    return Prepared(tuple(parts), calls, sum(isinstance(call, DispatchCall) for call in calls))


def emptied(program: Prepared) -> Prepared:
    """The same calls with empty grids and copies: all of the host's work and none of the GPU's."""
    parts: list[list[Handles] | CopyCall] = []
    for part in program.parts:
        if isinstance(part, CopyCall):
            parts.append(replace(part, nbytes=0))
        else:
            parts.append([(pipeline, group, 0, 0, 0) for pipeline, group, *_ in part])
    return replace(program, parts=tuple(parts))


class Recorder:
    """Encodes and submits command buffers for one device.

    `n_threads`: how many encode at once; None for what this computer has cores for. One needs no thread.
    """

    def __init__(self, device: Any, n_threads: int | None = None) -> None:
        self._device = device
        self._device_handle = device._internal
        self._queue_handle = device.queue._internal
        self._encoder_descriptor = ffi.new("WGPUCommandEncoderDescriptor *")
        self._pass_descriptor = ffi.new("WGPUComputePassDescriptor *")
        self._buffer_descriptor = ffi.new("WGPUCommandBufferDescriptor *")
        self._index = ffi.new("WGPUSubmissionIndex *")
        self._n_threads = n_threads or _spare_threads(device)
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Iterable[Prepared | CopyCall]) -> int:
        """Encode `work` and submit it at once; returns what `wait` takes.

        Raises:
            RuntimeFailure: the encoding is invalid. Nothing was submitted: wgpu-native would abort.
        """
        commands = self._encode_pieces(pieces(tuple(work), self._n_threads))
        try:
            with native_errors():
                index = lib.wgpuQueueSubmitForIndex(
                    self._queue_handle, len(commands), ffi.new("WGPUCommandBuffer[]", commands)
                )
        finally:
            for command in commands:
                lib.wgpuCommandBufferRelease(command)
        return int(index)

    def wait(self, index: int) -> None:
        """Block until the submission `index` is done, and run the callbacks of finished mappings."""
        self._index[0] = index
        lib.wgpuDevicePoll(self._device_handle, True, self._index)

    def close(self) -> None:
        """End the threads. What was submitted goes on."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _encode_pieces(self, work: Sequence[Sequence[Prepared | CopyCall]]) -> list[Any]:
        """A command buffer per piece, in their order."""
        if len(work) == 1:
            return [self._encode(work[0])]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="encode")
        futures = [self._pool.submit(self._encode, piece) for piece in work]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.add_done_callback(_drop)
            raise

    def _encode(self, work: Iterable[Prepared | CopyCall]) -> Any:
        """A finished command buffer. wgpu-py collects native errors by thread, and so does this."""
        with native_errors():
            encoder = lib.wgpuDeviceCreateCommandEncoder(self._device_handle, self._encoder_descriptor)
            try:
                for each in _passes(work):
                    if isinstance(each, CopyCall):
                        self._encode_copy(encoder, each)
                    else:
                        self._encode_pass(encoder, each)
                return lib.wgpuCommandEncoderFinish(encoder, self._buffer_descriptor)
            finally:
                lib.wgpuCommandEncoderRelease(encoder)

    def _encode_pass(self, encoder: Any, parts: list[list[Handles]]) -> None:
        """The inner one is the hot loop: two or three native calls a dispatch."""
        handle = lib.wgpuCommandEncoderBeginComputePass(encoder, self._pass_descriptor)
        compute = pointer(handle)
        for part in parts:
            for pipeline, group, x, y, z in part:
                if pipeline is not None:
                    set_pipeline(compute, pipeline)
                set_bind_group(compute, 0, group, NO_OFFSETS, None)
                if z >= 0:
                    dispatch(compute, x, y, z)
                else:
                    dispatch_indirect(compute, x, y)
        lib.wgpuComputePassEncoderEnd(handle)
        lib.wgpuComputePassEncoderRelease(handle)

    @staticmethod
    def _encode_copy(encoder: Any, call: CopyCall) -> None:
        lib.wgpuCommandEncoderCopyBufferToBuffer(
            encoder,
            call.source._internal,
            call.source_offset,
            call.target._internal,
            call.target_offset,
            call.nbytes,
        )


def _passes(work: Iterable[Prepared | CopyCall]) -> Iterator[list[list[Handles]] | CopyCall]:
    """Copies, and between them all dispatches as one pass."""
    together: list[list[Handles]] = []
    for item in work:
        for part in (item,) if isinstance(item, CopyCall) else item.parts:
            if not isinstance(part, CopyCall):
                together.append(part)
                continue
            if together:
                yield together
                together = []
            yield part
    if together:
        yield together


def pieces(work: Sequence[Prepared | CopyCall], n_threads: int) -> list[Sequence[Prepared | CopyCall]]:
    """`work` cut between programs into at most `n_threads` runs of about as many dispatches each.

    A run has at least `MIN_PIECE`; what is too little for two stays whole.
    """
    counts = [item.n_dispatches if isinstance(item, Prepared) else 0 for item in work]
    total = sum(counts)
    n = max(1, min(n_threads, total // MIN_PIECE))
    cuts, seen = [0], 0
    for at, count in enumerate(counts):
        if len(cuts) < n and at > cuts[-1] and seen >= total * len(cuts) / n:
            cuts.append(at)
        seen += count
    return [work[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(work)], strict=True)]


def _spare_threads(device: Any) -> int:
    """Threads that encoding may take. A software GPU needs every core itself."""
    if device.adapter_info["adapter_type"] == "CPU":
        return 1
    return max(1, min(MAX_THREADS, (os.cpu_count() or 1) // CORES_PER_THREAD))


def _drop(future: Future[Any]) -> None:
    """Release a command buffer that will not be submitted."""
    if not future.cancelled() and future.exception() is None:
        lib.wgpuCommandBufferRelease(future.result())
