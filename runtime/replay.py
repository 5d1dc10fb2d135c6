"""The captured graph: programs as arrays of native handles, re-encoded by a loop that does nothing else.

WebGPU has no reusable compute command buffer. What can be kept is everything but the calls themselves, so
this module calls wgpu-native through cffi on prepared handles: a third of the CPU time of wgpu-py's public
calls. cffi lets go of the GIL, and the GPU works while the next tokens are encoded.

Raw handles keep nothing alive: `Prepared` and `Recorder` hold the wgpu-py objects beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import wgpu
from wgpu.backends.wgpu_native import ffi, lib
from wgpu.backends.wgpu_native._api import error_handler

from .errors import RuntimeFailure

_begin_pass = lib.wgpuCommandEncoderBeginComputePass
_set_pipeline = lib.wgpuComputePassEncoderSetPipeline
_set_bind_group = lib.wgpuComputePassEncoderSetBindGroup
_dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
_dispatch_indirect = lib.wgpuComputePassEncoderDispatchWorkgroupsIndirect
_end_pass = lib.wgpuComputePassEncoderEnd
_release_pass = lib.wgpuComputePassEncoderRelease
_copy = lib.wgpuCommandEncoderCopyBufferToBuffer
_NULL = ffi.NULL

MAX_POLLS = 1000
"""Waits for one mapping; the first should do. A lost device returns from a wait at once, and never maps."""


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

    A dispatch is (pipeline or None if it is still set, bind group, x, y, z); an indirect one has its buffer
    in x, its offset in y and -1 in z.
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
        handle = None if call.pipeline is pipeline else call.pipeline._internal
        pipeline = call.pipeline
        grid = call.grid if call.indirect is None else (call.indirect[0]._internal, call.indirect[1], -1)
        part = parts[-1]
        assert isinstance(part, list)
        part.append((handle, call.bind_group._internal, *grid))
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
    """Encodes and submits command buffers for one device."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._device_handle = device._internal
        self._queue_handle = device.queue._internal
        self._encoder_descriptor = ffi.new("WGPUCommandEncoderDescriptor *")
        self._pass_descriptor = ffi.new("WGPUComputePassDescriptor *")
        self._buffer_descriptor = ffi.new("WGPUCommandBufferDescriptor *")
        self._commands = ffi.new("WGPUCommandBuffer[1]")
        self._index = ffi.new("WGPUSubmissionIndex *")

    def submit(self, work: Iterable[Prepared | CopyCall]) -> int:
        """Encode `work` into one command buffer and submit it; returns what `wait` takes.

        Raises:
            RuntimeFailure: the encoding is invalid. Nothing was submitted: wgpu-native would abort.
        """
        self._commands[0] = self._encode(work)
        with native_errors():
            index = lib.wgpuQueueSubmitForIndex(self._queue_handle, 1, self._commands)
        lib.wgpuCommandBufferRelease(self._commands[0])
        return int(index)

    def check(self, program: Prepared) -> None:
        """Run `program` with empty grids and copies: whatever wgpu finds wrong with it is found now.

        It is submitted, though it does nothing: wgpu-native never lets go of a finished command buffer that
        was not, nor of the device behind it.

        Raises:
            RuntimeFailure: the encoding is invalid.
        """
        self.submit([emptied(program)])

    def wait(self, index: int) -> None:
        """Block until the submission `index` is done, and run the callbacks of finished mappings."""
        self._index[0] = index
        lib.wgpuDevicePoll(self._device_handle, True, self._index)

    def _encode(self, work: Iterable[Prepared | CopyCall]) -> Any:
        with native_errors():
            encoder = lib.wgpuDeviceCreateCommandEncoder(self._device_handle, self._encoder_descriptor)
            try:
                for item in work:
                    if isinstance(item, CopyCall):
                        self._encode_copy(encoder, item)
                        continue
                    for part in item.parts:
                        if isinstance(part, CopyCall):
                            self._encode_copy(encoder, part)
                        else:
                            self._encode_pass(encoder, part)
                return lib.wgpuCommandEncoderFinish(encoder, self._buffer_descriptor)
            finally:
                lib.wgpuCommandEncoderRelease(encoder)

    def _encode_pass(self, encoder: Any, part: list[Handles]) -> None:
        """The hot loop: two or three native calls a dispatch."""
        set_pipeline, set_bind_group, dispatch, null = _set_pipeline, _set_bind_group, _dispatch, _NULL
        compute = _begin_pass(encoder, self._pass_descriptor)
        for pipeline, group, x, y, z in part:
            if pipeline is not None:
                set_pipeline(compute, pipeline)
            set_bind_group(compute, 0, group, 0, null)
            if z >= 0:
                dispatch(compute, x, y, z)
            else:
                _dispatch_indirect(compute, x, y)
        _end_pass(compute)
        _release_pass(compute)

    @staticmethod
    def _encode_copy(encoder: Any, call: CopyCall) -> None:
        _copy(
            encoder,
            call.source._internal,
            call.source_offset,
            call.target._internal,
            call.target_offset,
            call.nbytes,
        )


@contextmanager
def native_errors() -> Iterator[None]:
    """Collect what wgpu-native reports during direct calls, as wgpu-py does around its own.

    Raises:
        RuntimeFailure: it reported something.
    """
    error_handler.capture("webgpu_compile")
    try:
        yield
    finally:
        found = error_handler.release("webgpu_compile")
    if found is not None:
        kind, message = found
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        raise RuntimeFailure(
            "the GPU",
            f"reported an error ({kind}): {lines[-1] if lines else 'no message'}",
            "load the artifact again; if it stays, report it with the lines below",
            message.strip(),
        )


_staging: WeakValueDictionary[int, Staging] = WeakValueDictionary()
"""By `id`. A mapping may be answered after its buffer is gone, so the callback itself must live for ever."""


@ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")  # type: ignore[untyped-decorator]
def _mapped(status: int, message: Any, staging: Any, unused: Any) -> None:
    found = _staging.get(int(ffi.cast("uintptr_t", staging)))
    if found is not None:
        found.status = status


class Staging:
    """A mappable buffer: copies into it travel with a submission, `read` waits for that one and maps it."""

    def __init__(self, device: Any, recorder: Recorder, nbytes: int) -> None:
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
        self.buffer = device.create_buffer(label="staging", size=nbytes, usage=usage)
        self.nbytes = nbytes
        self._recorder = recorder
        self.status: int | None = None
        self._info = ffi.new("WGPUBufferMapCallbackInfo *")
        self._info.mode = lib.WGPUCallbackMode_AllowProcessEvents
        self._info.callback = _mapped
        self._info.userdata1 = ffi.cast("void *", id(self))
        _staging[id(self)] = self

    def request(self, nbytes: int) -> None:
        """Ask for the mapping of the first `nbytes`. Call it after the submission that fills them."""
        self.status = None
        with native_errors():
            lib.wgpuBufferMapAsync(self.buffer._internal, lib.WGPUMapMode_Read, 0, nbytes, self._info[0])

    def read(self, submission: int, nbytes: int) -> bytes:
        """The first `nbytes` once `submission` is done.

        Raises:
            RuntimeFailure: the device was lost.
        """
        for _ in range(MAX_POLLS):
            if self.status is not None:
                break
            self._recorder.wait(submission)
        if self.status != lib.WGPUMapAsyncStatus_Success:
            raise RuntimeFailure("the GPU", "was lost while it worked", "load the artifact again")
        address = lib.wgpuBufferGetConstMappedRange(self.buffer._internal, 0, nbytes)
        data = bytes(ffi.buffer(address, nbytes))
        lib.wgpuBufferUnmap(self.buffer._internal)
        return data

    def destroy(self) -> None:
        self.buffer.destroy()
