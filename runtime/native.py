"""wgpu-native called directly: the three calls made for every dispatch, and what it reports meanwhile.

wgpu-py reaches wgpu-native through cffi, whose calls let go of the GIL and take it again. Recording a
dispatch waits for nothing, so its calls go through ctypes with the GIL held: two thirds of the time, and no
hand-over to another thread in between. Their arguments are plain ints (u32), `pointer`s and None, which
ctypes converts fastest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wgpu.backends.wgpu_native import ffi, lib
from wgpu.backends.wgpu_native._api import error_handler

from .errors import RuntimeFailure

NO_OFFSETS = ctypes.c_size_t(0)


def _held(function: Any) -> Callable[..., None]:
    """A function of `lib` as ctypes calls it, without letting go of the GIL."""
    return ctypes.PYFUNCTYPE(None)(int(ffi.cast("uintptr_t", function)))


set_pipeline = _held(lib.wgpuComputePassEncoderSetPipeline)
set_bind_group = _held(lib.wgpuComputePassEncoderSetBindGroup)
dispatch = _held(lib.wgpuComputePassEncoderDispatchWorkgroups)
dispatch_indirect = _held(lib.wgpuComputePassEncoderDispatchWorkgroupsIndirect)


def pointer(handle: Any) -> ctypes.c_void_p:
    """A handle of cffi's as the calls above take it. It keeps nothing alive."""
    return ctypes.c_void_p(int(ffi.cast("uintptr_t", handle)))


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
