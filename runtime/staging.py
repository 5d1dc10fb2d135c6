"""Mappable buffers, through which results come back."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import wgpu
from wgpu.backends.wgpu_native import ffi, lib

from .errors import RuntimeFailure
from .native import native_errors
from .replay import Recorder

MAX_POLLS = 1000
"""Waits for one mapping; the first should do. A lost device returns from a wait at once, and never maps."""

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
