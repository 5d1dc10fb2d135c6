"""WebGPU limits, spelled as wgpu spells them, and what a variant needs of them."""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType

from .programs import Copy, Variant
from .schema import Manifest

DEFAULTS = MappingProxyType(
    {
        "max-storage-buffers-per-shader-stage": 8,
        "max-storage-buffer-binding-size": 128 << 20,
        "max-buffer-size": 256 << 20,
        "max-compute-workgroup-storage-size": 16 << 10,
        "max-compute-invocations-per-workgroup": 256,
        "max-compute-workgroup-size-x": 256,
        "max-compute-workgroup-size-y": 256,
        "max-compute-workgroup-size-z": 64,
        "max-compute-workgroups-per-dimension": 65535,
    }
)
"""The limits that concern compute, with what every implementation has (specification, section 3.6.2)."""

NATIVE_FEATURES = MappingProxyType({"shader-f16": "shader-f16", "subgroups": "subgroup"})
"""WebGPU's feature names and wgpu-native's."""


def granted(variant: Variant) -> dict[str, int]:
    """The limits that a device made for `variant` has: the defaults, raised where the variant says so."""
    return {name: max(value, variant.limits.get(name, 0)) for name, value in DEFAULTS.items()}


def missing_features(variant: Variant, features: Collection[str]) -> list[str]:
    """Features of `variant` that are not among an adapter's or device's."""
    return [
        name for name in variant.features if NATIVE_FEATURES[name] not in features and name not in features
    ]


def missing_limits(variant: Variant, limits: dict[str, int]) -> list[str]:
    """Limits of `variant` that an adapter or device does not reach, as "name (needs n, has m)".

    Adapters below the defaults exist (compatibility mode); a variant that needs less may say so.
    """
    need = {**DEFAULTS, **variant.limits}
    return [
        f"{name} (needs {value}, has {limits.get(name, 0)})"
        for name, value in need.items()
        if limits.get(name, 0) < value
    ]


def buffers_of(manifest: Manifest, variant: Variant) -> set[int]:
    """Indices of the buffers that the programs of `variant` touch, or that the caller reads and writes."""
    used = set()
    if manifest.sequence is not None:
        used |= {manifest.sequence.buffer, manifest.sequence.tokens}
    for program in variant.programs.values():
        used |= {port.buffer for port in (*program.inputs, *program.outputs)}
        for step in program.steps:
            if isinstance(step, Copy):
                used |= {step.source, step.target}
                continue
            used |= {bound.buffer for bound in step.bindings}
            if step.indirect is not None:
                used.add(step.indirect.buffer)
    return used
