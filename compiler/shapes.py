"""Which kernel shapes suit which GPU: all that the compiler knows about makes of GPU is in this table.

A shape is a matter of speed alone: kernels give the same answers with any of them, to rounding, and none of
them assumes a subgroup size. `GENERIC` was found by sweeps on an H200 with cold weights and is what an
artifact has for everyone. The other rows start from the number of threads that a core runs in lock-step and
from how many workgroups a GPU needs to be full; they are starting points, not measurements. `webgpu-compile
--tune` begins with the row of the GPU that it finds and measures around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class GemvLayout:
    """The workgroup of a GEMV, in powers of two: `lanes` of its `threads` walk along K of the same rows."""

    threads: int
    lanes: int

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.lanes} lanes"


@dataclass(frozen=True, slots=True)
class Shapes:
    """How kernels are laid out on a GPU.

    `project` is for products whose output goes on as it is (QKV above all), `head` for the LM head with its
    arg-max. `project.lanes` is the most; short rows get fewer. Those that write int8 have one block per
    workgroup, and here only their lanes: `residual` adds the residual and normalises, `gated` is for gate and
    up. Lanes are 16 or more. A workgroup of decode attention takes `tile` cache positions at a time, and at
    most `splits` workgroups share a KV head's.
    """

    project: GemvLayout = GemvLayout(128, 32)
    residual: int = 64
    gated: int = 16
    head: GemvLayout = GemvLayout(256, 16)
    tile: int = 32
    splits: int = 64


GENERIC = Shapes()

BY_VENDOR = MappingProxyType(
    {
        # Cores of 64 lanes (32 since RDNA): wide rows suit both.
        "amd": replace(GENERIC, head=GemvLayout(256, 32)),
        # SIMD groups of 32; unified memory is slow against arithmetic, so little sharing and many workgroups.
        "apple": replace(GENERIC, residual=32, head=GemvLayout(128, 32)),
        # 8 to 32 lanes and few threads per core: small workgroups.
        "intel": replace(GENERIC, project=GemvLayout(64, 32), residual=16, head=GemvLayout(64, 16)),
        "nvidia": GENERIC,
    }
)
"""By the vendor's name in WebGPU's adapter info (runtime/device.py makes it from a PCI vendor ID)."""


CHOICES = MappingProxyType(
    {
        "project": tuple(GemvLayout(threads, lanes) for threads in (64, 128, 256) for lanes in (32, 64, 128)),
        "residual": (16, 32, 64),
        "gated": (16, 32),
        "head": tuple(GemvLayout(threads, lanes) for threads in (64, 128, 256) for lanes in (16, 32)),
        "tile": (16, 32, 64),
        "splits": (16, 32, 64, 128),
    }
)
"""What `--tune` tries for each field of `Shapes`. They do not depend on each other."""


def shapes_for(vendor: str) -> Shapes:
    """The row of a vendor, or the generic one."""
    return BY_VENDOR.get(vendor, GENERIC)


def neighbours(shapes: Shapes) -> Iterator[tuple[str, Shapes]]:
    """(field, shapes) for every other value of every field, in the order of the table."""
    for field in fields(Shapes):
        for value in CHOICES[field.name]:
            if value != getattr(shapes, field.name):
                yield field.name, replace(shapes, **{field.name: value})  # type: ignore[arg-type]
