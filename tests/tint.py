"""Tint, the WGSL compiler of Chromium and Dawn, as a checker: no GPU, no browser.

The library is PyPI's `dawn-python`. Its null backend offers every feature; creating a shader module runs
Tint's whole front end, uniformity analysis included, and creating the pipeline checks the shader against
the specification's default limits (workgroup size and memory, storage buffers). Only the package's ctypes
declarations are used.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydawn import webgpu as dawn

FEATURES = {
    "shader-f16": (dawn.WGPUFeatureName_ShaderF16,),
    "subgroups": (dawn.WGPUFeatureName_Subgroups,),
}
DEFAULT_FEATURES = ("shader-f16", "subgroups")

Pipeline = tuple[str, Mapping[str, float]]
"""An entry point, and values of overrides."""

_ENTRY = re.compile(r"@compute[^{;]*?\bfn\s+(\w+)")


def check(
    wgsl: str, features: Sequence[str] = DEFAULT_FEATURES, pipelines: Sequence[Pipeline] | None = None
) -> list[str]:
    """Tint's errors for one shader, each `LINE:COLUMN: message`; none if Tint accepts it.

    `features` are the WebGPU features that the device has: `enable f16;` without `shader-f16` is an error.
    `pipelines` are made of it; None: one of each entry point, with the overrides' defaults.
    """
    return check_all([wgsl], features, pipelines)[0]


def check_all(
    shaders: Iterable[str],
    features: Sequence[str] = DEFAULT_FEATURES,
    pipelines: Sequence[Pipeline] | None = None,
) -> list[list[str]]:
    """`check` for many shaders: about a millisecond each."""
    device = _device(tuple(sorted(features)))
    return [_errors(device, wgsl, pipelines) for wgsl in shaders]


def _errors(device: Any, wgsl: str, pipelines: Sequence[Pipeline] | None) -> list[str]:
    source = wgsl.encode()
    messages: list[str] = []

    def on_info(_status: int, info: Any, *_userdata: Any) -> None:
        for message in info.contents.messages[: info.contents.messageCount]:
            if message.type == dawn.WGPUCompilationMessageType_Error:
                messages.append(f"{message.lineNum}:{message.linePos}: {_text(message.message)}")

    descriptor = dawn.WGPUShaderModuleWGSLDescriptor()
    descriptor.chain.sType = dawn.WGPUSType_ShaderSourceWGSL
    text = ctypes.create_string_buffer(source)
    descriptor.code.data = ctypes.cast(text, ctypes.POINTER(ctypes.c_char))
    descriptor.code.length = len(source)
    module = dawn.WGPUShaderModuleDescriptor()
    module.nextInChain = ctypes.cast(
        ctypes.pointer(descriptor), ctypes.POINTER(dawn.struct_WGPUChainedStruct)
    )
    dawn.wgpuDevicePushErrorScope(device, dawn.WGPUErrorFilter_Validation)
    shader = dawn.wgpuDeviceCreateShaderModule(device, module)
    rejected = _pop_error(device)
    info = dawn.WGPUCompilationInfoCallbackInfo2()
    info.mode = dawn.WGPUCallbackMode_WaitAnyOnly
    info.callback = dawn.WGPUCompilationInfoCallback2(on_info)
    _wait(dawn.wgpuShaderModuleGetCompilationInfo2(shader, info))
    if not messages:
        if pipelines is None:
            pipelines = [(name, {}) for name in _ENTRY.findall(re.sub(r"//[^\n]*", "", wgsl))]
        for pipeline in pipelines:
            rejected = rejected or _pipeline_error(device, shader, *pipeline)
        messages = [f"0:0: {rejected.splitlines()[0]}"] if rejected else []
    dawn.wgpuShaderModuleRelease(shader)
    return messages


def _pipeline_error(device: Any, shader: Any, entry: str, constants: Mapping[str, float]) -> str:
    """What is over the limits, if anything: known only once an entry point becomes a pipeline."""
    dawn.wgpuDevicePushErrorScope(device, dawn.WGPUErrorFilter_Validation)
    descriptor = dawn.WGPUComputePipelineDescriptor()
    descriptor.compute.module = shader
    kept = [_set_text(descriptor.compute.entryPoint, entry)]
    entries = (dawn.WGPUConstantEntry * len(constants))()
    for each, (name, value) in zip(entries, constants.items(), strict=True):
        kept.append(_set_text(each.key, name))
        each.value = value
    descriptor.compute.constantCount = len(constants)
    descriptor.compute.constants = ctypes.cast(entries, ctypes.POINTER(dawn.WGPUConstantEntry))
    dawn.wgpuComputePipelineRelease(dawn.wgpuDeviceCreateComputePipeline(device, descriptor))
    return _pop_error(device)


def _set_text(view: Any, text: str) -> Any:
    """Make a string view show `text`; the result holds its memory."""
    memory = ctypes.create_string_buffer(text.encode())
    view.data = ctypes.cast(memory, ctypes.POINTER(ctypes.c_char))
    view.length = len(text.encode())
    return memory


def _pop_error(device: Any) -> str:
    errors: list[str] = []

    def on_error(_status: int, kind: int, message: Any, *_userdata: Any) -> None:
        if kind != dawn.WGPUErrorType_NoError:
            errors.append(_text(message))

    info = dawn.WGPUPopErrorScopeCallbackInfo()
    info.mode = dawn.WGPUCallbackMode_WaitAnyOnly
    info.callback = dawn.WGPUPopErrorScopeCallback(on_error)
    _wait(dawn.wgpuDevicePopErrorScopeF(device, info))
    return "".join(errors)


@cache
def _instance() -> Any:
    descriptor = dawn.WGPUInstanceDescriptor()
    descriptor.features.timedWaitAnyEnable = True
    return dawn.wgpuCreateInstance(descriptor)


@cache
def _device(features: tuple[str, ...]) -> Any:
    found: dict[str, Any] = {}

    def keep(kind: str) -> Any:
        def on_result(status: int, handle: Any, message: Any, *_userdata: Any) -> None:
            found[kind] = handle if status == 1 else RuntimeError(f"Dawn: no {kind}: {_text(message)}")

        return on_result

    adapter_options = dawn.WGPURequestAdapterOptions()
    adapter_options.backendType = dawn.WGPUBackendType_Null
    adapter_info = dawn.WGPURequestAdapterCallbackInfo()
    adapter_info.mode = dawn.WGPUCallbackMode_WaitAnyOnly
    adapter_info.callback = dawn.WGPURequestAdapterCallback(keep("adapter"))
    _wait(dawn.wgpuInstanceRequestAdapterF(_instance(), adapter_options, adapter_info))
    required = [value for feature in features for value in FEATURES[feature]]
    names = (dawn.WGPUFeatureName * len(required))(*required)
    descriptor = dawn.WGPUDeviceDescriptor()
    descriptor.requiredFeatureCount = len(required)
    descriptor.requiredFeatures = ctypes.cast(names, ctypes.POINTER(dawn.WGPUFeatureName))
    device_info = dawn.WGPURequestDeviceCallbackInfo()
    device_info.mode = dawn.WGPUCallbackMode_WaitAnyOnly
    device_info.callback = dawn.WGPURequestDeviceCallback(keep("device"))
    _wait(dawn.wgpuAdapterRequestDeviceF(found["adapter"], descriptor, device_info))
    if isinstance(found["device"], Exception):
        raise found["device"]
    return found["device"]


def _wait(future: Any) -> None:
    info = dawn.WGPUFutureWaitInfo()
    info.future = future
    if dawn.wgpuInstanceWaitAny(_instance(), 1, info, 2**64 - 1) != dawn.WGPUWaitStatus_Success:
        raise RuntimeError("Dawn did not answer")


def _text(view: Any) -> str:
    return ctypes.string_at(view.data, view.length).decode() if view.length else ""
