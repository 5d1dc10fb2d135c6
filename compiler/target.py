"""The variants of an artifact: which optional WebGPU features its shaders may use, within which limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from .shapes import GENERIC, Shapes

SPEC_LIMITS = MappingProxyType(
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
"""The limits that every WebGPU implementation has (specification, section 3.6.2)."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The GPU that a variant is for, as WebGPU's adapter info names it; an empty field is anything."""

    vendor: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One variant. Kernels stay within `SPEC_LIMITS` in all of them; only features differ.

    `f16`: `enable f16;` may be used. `subgroups`: subgroup operations may be used, of any subgroup size
    from 4 to 128. `adapter`: made for that one; others run another variant. `cpu`: for adapters that a CPU
    plays (SwiftShader, lavapipe), where barriers and big shaders are dear
    (docs/decisions/0004-a-variant-for-software-gpus.md).
    """

    name: str
    f16: bool = False
    subgroups: bool = False
    shapes: Shapes = GENERIC
    adapter: Adapter | None = None
    cpu: bool = False
    features: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        features = [name for name, on in (("shader-f16", self.f16), ("subgroups", self.subgroups)) if on]
        object.__setattr__(self, "features", tuple(features))


TARGETS = {
    target.name: target
    for target in (
        Target("f16-subgroups", f16=True, subgroups=True),
        Target("subgroups", subgroups=True),
        Target("portable"),
        Target("software", cpu=True),
    )
}
"""By name, most demanding first: the order in which the runtime tries them."""

DEFAULT_TARGETS = ("f16-subgroups", "portable", "software")
