"""The manifest: the plan, written down for runtimes. `runtime/schema.py` says what every field means.

The compiler does not import the runtime; that the two agree is a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..plan import Plan, ProgramPlan
from ..program import Access, IndirectGrid
from ..target import SPEC_LIMITS, Target
from .modules import ENTRY
from .names import bounded_names
from .schedules import Schedules
from .shaders import ShaderSet
from .shards import BLOCK_NBYTES, Shard

FORMAT = "webgpu-compile"
VERSION = 3

Json = dict[str, Any]


def manifest(
    plan: Plan,
    schedules: Schedules,
    shaders: ShaderSet,
    shards: Sequence[Shard],
    model: Json,
    sequence: Json | None,
    files: Mapping[str, str],
    producer: str,
) -> Json:
    """The whole manifest as JSON values."""
    document: Json = {
        "format": FORMAT,
        "version": VERSION,
        "producer": producer,
        "model": model,
    }
    if sequence:
        document["sequence"] = sequence
    document["buffers"] = [
        {
            "name": buffer.name,
            "nbytes": buffer.nbytes,
            "kind": str(buffer.kind),
            **({"indirect": True} if buffer.indirect else {}),
        }
        for buffer in plan.buffers
    ]
    document["shards"] = [
        {
            "file": shard.file,
            "nbytes": shard.nbytes,
            "data_offset": shard.data_offset,
            "buffer": i,
            "block_nbytes": BLOCK_NBYTES,
            "blocks": list(shard.blocks),
        }
        for i, shard in enumerate(shards)
    ]
    document["modules"] = {file.name: file.sha256 for file in shaders.files}
    document["shaders"] = [
        {
            "file": shader.file.name,
            **({"entry": shader.entry} if shader.entry != ENTRY else {}),
            **({"constants": dict(shader.constants)} if shader.constants else {}),
            "workgroup": list(shader.workgroup),
            "access": "".join(Access(access).letter for access in shader.access),
            **({"features": list(shader.features)} if shader.features else {}),
        }
        for shader in shaders.shaders
    ]
    document["variants"] = [
        {
            "name": variant,
            "features": list(shaders.targets[variant].features),
            **_adapter(shaders.targets[variant]),
            "limits": limits(plan, programs),
            "launches": schedules.launches(variant),
            **({"programs": own} if (own := schedules.own(variant)) else {}),
            **({"software": True} if shaders.targets[variant].cpu else {}),
        }
        for variant, programs in plan.variants.items()
    ]
    document["kernels"] = schedules.kernels()
    document["ranges"] = schedules.ranges()
    document["programs"] = schedules.shared()
    if files:
        document["files"] = dict(sorted(files.items()))
    return dict(bounded_names(document))


def _adapter(target: Target) -> Json:
    if target.adapter is None:
        return {}
    device = {"device": target.adapter.device} if target.adapter.device else {}
    return {"adapter": {"vendor": target.adapter.vendor, **device}}


def limits(plan: Plan, programs: Sequence[ProgramPlan]) -> dict[str, int]:
    """Exactly the WebGPU limits that these programs need, never below the specification's defaults."""
    need = dict.fromkeys(SPEC_LIMITS, 0)

    def at_least(name: str, value: int) -> None:
        need[name] = max(need[name], value)

    for buffer in plan.buffers:
        at_least("max-buffer-size", buffer.nbytes)
    for planned in programs:
        for kernel in planned.program.kernels:
            at_least("max-storage-buffers-per-shader-stage", len(kernel.bindings))
            at_least("max-compute-workgroup-storage-size", kernel.workgroup_nbytes)
            at_least("max-compute-invocations-per-workgroup", prod(kernel.workgroup))
            for axis, size in zip("xyz", kernel.workgroup, strict=True):
                at_least(f"max-compute-workgroup-size-{axis}", size)
            for binding in kernel.bindings:
                at_least("max-storage-buffer-binding-size", planned.places[binding.tensor].nbytes)
            grid = kernel.worst_grid if isinstance(kernel.grid, IndirectGrid) else kernel.grid
            at_least("max-compute-workgroups-per-dimension", max(grid or (1,)))
    return need
