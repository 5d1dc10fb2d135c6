"""The adapter, the variant that it can run, and a device with exactly that variant's limits and features."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import wgpu
from wgpu.backends.wgpu_native.extras import set_instance_extras

from .errors import RuntimeFailure
from .limits import NATIVE_FEATURES, granted, missing_features, missing_limits
from .native_types import parse_types
from .schema import Variant

NO_ADAPTER_HINT = (
    "install the GPU's Vulkan driver, or a software one (Debian and Ubuntu: "
    "apt-get install mesa-vulkan-drivers libvulkan1), and look with `vulkaninfo --summary`"
)


def request_adapter(power_preference: str = "high-performance") -> Any:
    """The best adapter of this machine.

    Raises:
        RuntimeFailure: there is none; the hint says how to get one.
    """
    _prepare_instance()
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference=power_preference)
    except (RuntimeError, ValueError):
        adapter = None
    if adapter is None:
        raise RuntimeFailure("WebGPU", "no adapter was found", NO_ADAPTER_HINT)
    return adapter


def _prepare_instance() -> None:
    """Leave out OpenGL and wgpu's extra validation, before the first adapter of the process.

    Without the flag wgpu checks every indirect grid by a dispatch of its own, which doubles the time of
    small kernels; ours are written by the artifact's kernels and bounded by the plan.
    """
    parse_types()
    with suppress(RuntimeError):  # the caller has used wgpu before: its instance will do
        set_instance_extras(backends=["Primary"], flags=["Empty"])


def choose_variant(variants: list[Variant], gpu: Any, forced: str | None = None) -> tuple[Variant, str]:
    """The first variant that `gpu` (an adapter or a device) can run, and a sentence saying why.

    Raises:
        RuntimeFailure: no variant can run, or `forced` cannot or does not exist.
    """
    names = [variant.name for variant in variants]
    if forced is not None:
        if forced not in names:
            raise RuntimeFailure(
                f"variant {forced!r}", "is not in this artifact", f"choose from {', '.join(names)}"
            )
        variants = [variant for variant in variants if variant.name == forced]
    refused: list[str] = []
    for variant in variants:
        lacks = lacking(variant, gpu)
        if not lacks:
            return variant, _reason(variant, refused, forced is not None)
        refused.append(f"{variant.name} needs {lacks}")
    hint = "compile with --variants portable, or use another GPU"
    if forced is not None:
        hint = f"leave the variant to the runtime, or choose another of {', '.join(names)}"
    raise RuntimeFailure(f"adapter {describe(gpu)}", f"cannot run it: {'; '.join(refused)}", hint)


def lacking(variant: Variant, gpu: Any) -> str:
    """What `variant` needs and `gpu` does not have, as text; empty if it can run."""
    return ", ".join([*missing_features(variant, gpu.features), *missing_limits(variant, gpu.limits)])


def _reason(variant: Variant, refused: list[str], forced: bool) -> str:
    if forced:
        return f"{variant.name}: asked for"
    if not refused:
        return f"{variant.name}: the artifact's first choice"
    return f"{variant.name}: the best that this adapter runs ({'; '.join(refused)})"


def request_device(adapter: Any, variant: Variant) -> Any:
    """A device with the features of `variant` and its limits, no more: wgpu-py asks for all otherwise.

    Raises:
        RuntimeFailure: the driver refuses.
    """
    limits = {
        name: min(value, adapter.limits[name])
        for name, value in granted(variant).items()
        if name in adapter.limits
    }
    features = [NATIVE_FEATURES[name] for name in variant.features]
    try:
        return adapter.request_device_sync(required_features=features, required_limits=limits)
    except (RuntimeError, wgpu.GPUError) as error:
        raise RuntimeFailure(
            f"adapter {describe(adapter)}",
            f"gives no device ({str(error).splitlines()[0][:200]})",
            "close other programs that use the GPU, or update its driver",
        ) from None


def describe(gpu: Any) -> str:
    """The name of an adapter, or of a device's."""
    info = gpu.info if hasattr(gpu, "info") else gpu.adapter_info
    return f"{info['device']} ({info['backend_type']})"
