"""The adapter, the variant that it can run, and a device with exactly that variant's limits and features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import wgpu
from wgpu.backends.wgpu_native.extras import set_instance_extras

from .errors import RuntimeFailure
from .limits import NATIVE_FEATURES, granted, missing_features, missing_limits
from .native_types import parse_types
from .programs import Variant

VENDORS = {
    0x1002: "amd",
    0x106B: "apple",
    0x10DE: "nvidia",
    0x13B5: "arm",
    0x1414: "microsoft",
    0x1AE0: "google",
    0x5143: "qualcomm",
    0x8086: "intel",
    0x10005: "mesa",
}
"""WebGPU's names by PCI vendor ID. wgpu-native has the ID, and where browsers have the vendor the driver."""

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


def choose_variant(variants: Sequence[Variant], gpu: Any, forced: str | None = None) -> tuple[Variant, str]:
    """The first variant that `gpu` (an adapter or a device) can run, and a sentence saying why.

    Where a CPU plays the GPU, those made for that come before all but those tuned for it; elsewhere last.

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
    software = is_software(gpu)
    for variant in sorted(variants, key=lambda v: v.adapter is None and v.software != software):
        lacks = lacking(variant, gpu, forced is not None)
        if not lacks:
            return variant, _reason(variant, refused, forced is not None)
        refused.append(f"{variant.name} needs {lacks}")
    hint = "compile with --variants portable, or use another GPU"
    if forced is not None:
        hint = f"leave the variant to the runtime, or choose another of {', '.join(names)}"
    raise RuntimeFailure(f"adapter {describe(gpu)}", f"cannot run it: {'; '.join(refused)}", hint)


def lacking(variant: Variant, gpu: Any, forced: bool = False) -> str:
    """What `variant` needs and `gpu` does not have, as text; empty if it can run.

    A variant that was tuned for one adapter runs on others too, if the user insists.
    """
    wrong = [] if forced else _wrong_adapter(variant, gpu)
    return ", ".join([*wrong, *missing_features(variant, gpu.features), *missing_limits(variant, gpu.limits)])


def _wrong_adapter(variant: Variant, gpu: Any) -> list[str]:
    """The adapter that `variant` is for, unless it is this one."""
    wanted = variant.adapter
    if wanted is None:
        return []
    vendor, device = names_of(gpu)
    if wanted.vendor == vendor and wanted.device in ("", device):
        return []
    return [f"the adapter {wanted.device or wanted.vendor}"]


def is_software(gpu: Any) -> bool:
    """Whether a CPU plays this GPU, as lavapipe and SwiftShader let it."""
    return bool(_info(gpu)["adapter_type"] == "CPU")


def _reason(variant: Variant, refused: list[str], forced: bool) -> str:
    if forced:
        return f"{variant.name}: asked for"
    if variant.software:
        return f"{variant.name}: made for GPUs that a CPU plays"
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


def names_of(gpu: Any) -> tuple[str, str]:
    """(vendor, device) of an adapter, or of a device's: the vendor as browsers name it."""
    info = _info(gpu)
    name = str(info["device"])
    vendor = VENDORS.get(info["vendor_id"]) or ("apple" if name.startswith("Apple") else "unknown")
    return vendor, name


def describe(gpu: Any) -> str:
    """The name of an adapter, or of a device's."""
    info = _info(gpu)
    return f"{info['device']} ({info['backend_type']})"


def _info(gpu: Any) -> Any:
    return gpu.info if hasattr(gpu, "info") else gpu.adapter_info
