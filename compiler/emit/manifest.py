"""The manifest: the plan, written down for runtimes. `runtime/schema.py` says what every field means.

The compiler does not import the runtime; that the two agree is a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ..plan import Plan, ProgramPlan
from ..program import Access, IndirectGrid, Kernel, Role, Tensor
from ..target import SPEC_LIMITS, Target
from .names import bounded_names, weight_name
from .shaders import ShaderSet
from .shards import BLOCK_NBYTES, Shard

FORMAT = "webgpu-compile"
VERSION = 1

Json = dict[str, Any]


def manifest(
    plan: Plan,
    shaders: ShaderSet,
    shards: Sequence[Shard],
    model: Json,
    sequence: Json | None,
    ports: Callable[[ProgramPlan], tuple[list[Json], list[Json]]],
    files: Mapping[str, str],
    producer: str,
) -> Json:
    """The whole manifest as JSON values. `ports` gives the inputs and outputs of a program."""
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
    document["weights"] = [
        {
            "name": weight_name(weight.tensor.name),
            "dtype": str(weight.tensor.dtype),
            "shape": list(weight.tensor.shape),
            "shard": i,
            "offset": offset,
            "nbytes": weight.tensor.nbytes,
            "onnx": [source.initializer for source in weight.sources],
        }
        for i, (weights, shard) in enumerate(zip(plan.shards, shards, strict=True))
        for weight, offset in zip(weights, shard.offsets, strict=True)
    ]
    document["shaders"] = [
        {
            "file": shader.file,
            "sha256": shader.sha256,
            "workgroup": list(shader.workgroup),
            "access": list(shader.access),
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
            "programs": {p.program.name: _program(p, variant, shaders, ports) for p in programs},
        }
        for variant, programs in plan.variants.items()
    ]
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


def _program(
    planned: ProgramPlan,
    variant: str,
    shaders: ShaderSet,
    ports: Callable[[ProgramPlan], tuple[list[Json], list[Json]]],
) -> Json:
    program = planned.program
    inputs, outputs = ports(planned)
    document: Json = {
        "rows": program.rows,
        "steps": [
            _dispatch(planned, kernel, shaders.index[variant, kernel.name, program.name, step])
            for step, kernel in enumerate(program.kernels)
        ],
    }
    if inputs:
        document["inputs"] = inputs
    if outputs:
        document["outputs"] = outputs
    document["lifetimes"] = [
        [life.tensor, place.buffer, place.nbytes, life.first, life.last]
        for life in planned.lifetimes
        for place in (planned.places[life.tensor],)
    ]
    return document


def _dispatch(planned: ProgramPlan, kernel: Kernel, shader: int) -> Json:
    places = [planned.places[binding.tensor] for binding in kernel.bindings]
    step: Json = {
        "step": "dispatch",
        "kernel": kernel.name,
        "shader": shader,
        "bindings": [[place.buffer, place.offset, place.nbytes] for place in places],
    }
    if isinstance(kernel.grid, IndirectGrid):
        place = planned.places[kernel.grid.tensor]
        step["indirect"] = [place.buffer, place.offset + kernel.grid.offset]
    else:
        step["grid"] = list(kernel.grid)
    step["nodes"] = list(kernel.nodes)
    tensors = planned.program.tensors
    step["reads"] = sum(
        traffic(tensors[b.tensor], planned.program.rows) for b in kernel.bindings if b.access is Access.READ
    )
    step["writes"] = sum(
        traffic(tensors[b.tensor], planned.program.rows)
        for b in kernel.bindings
        if b.access is Access.READ_WRITE and tensors[b.tensor].role is not Role.STATE
    )
    step["work"] = kernel.work
    return step


def traffic(tensor: Tensor, rows: int) -> int:
    """Bytes of a tensor that one dispatch moves at most."""
    return tensor.nbytes
