"""C types of wgpu-py's calls, parsed together: cffi takes over 10 ms to parse each by itself.

For every type named in text, cffi has pycparser read all of wgpu.h's type names again. An adapter, a device
and a session need over forty, which is half a second and most of what `load` does for a small model. One
declaration that mentions all of them is parsed as fast as one of them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import cffi  # type: ignore[import-untyped]
from wgpu.backends.wgpu_native import ffi

POINTERS = (
    "char",
    "uint8_t",
    "void",
    "WGPUAdapterInfo",
    "WGPUBindGroupDescriptor",
    "WGPUBindGroupEntry",
    "WGPUBindGroupLayoutDescriptor",
    "WGPUBindGroupLayoutEntry",
    "WGPUBufferBindingLayout",
    "WGPUBufferDescriptor",
    "WGPUBufferMapCallbackInfo",
    "WGPUChainedStruct",
    "WGPUCommandBufferDescriptor",
    "WGPUCommandEncoderDescriptor",
    "WGPUComputePassDescriptor",
    "WGPUComputePipelineDescriptor",
    "WGPUComputeState",
    "WGPUDeviceDescriptor",
    "WGPUDeviceExtras",
    "WGPUDeviceLostCallbackInfo",
    "WGPUInstanceDescriptor",
    "WGPUInstanceExtras",
    "WGPULimits",
    "WGPUNativeLimits",
    "WGPUPipelineLayoutDescriptor",
    "WGPUQueueDescriptor",
    "WGPURequestAdapterCallbackInfo",
    "WGPURequestAdapterOptions",
    "WGPURequestDeviceCallbackInfo",
    "WGPUShaderModuleDescriptor",
    "WGPUShaderSourceWGSL",
    "WGPUSubmissionIndex",
    "WGPUUncapturedErrorCallbackInfo",
)
ARRAYS = ("char", "uint8_t")
WGPU_ARRAYS = (
    "WGPUBindGroupEntry",
    "WGPUBindGroupLayout",
    "WGPUBindGroupLayoutEntry",
    "WGPUCommandBuffer",
    "WGPUFeatureName",
)
FUNCTIONS = (
    "void(WGPUDevice const *, WGPUDeviceLostReason, WGPUStringView, void *, void *)",
    "void(WGPUDevice const *, WGPUErrorType, WGPUStringView, void *, void *)",
    "void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)",
    "void(WGPURequestAdapterStatus, WGPUAdapter, WGPUStringView, void *, void *)",
    "void(WGPURequestDeviceStatus, WGPUDevice, WGPUStringView, void *, void *)",
)


@cache
def parse_types() -> None:
    """Fill cffi's cache of parsed types, under the spellings that wgpu-py uses.

    The cache is not part of cffi's interface: without it, or with another wgpu.h, types are parsed one by one
    as ever.
    """
    parsed: dict[str, tuple[Any, bool]] | None = getattr(ffi, "_parsed_types", None)
    if parsed is None:
        return
    arrays = {
        **{f"{name} []": f"{name}(*)[]" for name in ARRAYS},
        **{f"{name}[]": f"{name}(*)[]" for name in WGPU_ARRAYS},
    }
    pointers = {
        **{f"{name} *": f"{name} *" for name in POINTERS},
        "WGPUChainedStruct * ": "WGPUChainedStruct *",  # spelled so in wgpu-py
    }
    parameters = (*pointers.values(), *arrays.values(), *FUNCTIONS)
    with suppress(cffi.CDefError, cffi.FFIError):
        found = iter(ffi.typeof(f"void(*)({', '.join(parameters)})").args)
        for name in pointers:
            parsed.setdefault(name, (next(found), False))
        for name in arrays:
            parsed.setdefault(name, (next(found).item, False))
        for name in FUNCTIONS:
            parsed.setdefault(name, (next(found), True))
