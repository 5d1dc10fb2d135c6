"""The rules of one step: WebGPU's usage rules, grids within limits.

That ranges are inside their buffers has been checked before.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from .limits import granted
from .programs import Copy, Dispatch, Program, Variant
from .schema import Manifest, Range

ALIGNMENT = 256
GRID_NBYTES = 12


def check_steps(manifest: Manifest, variant: Variant, program: Program) -> str | None:
    """What is wrong with the first bad step of `program`, or None."""
    if not program.steps:
        return "has no steps"
    limits = granted(variant)
    for number, step in enumerate(program.steps):
        if isinstance(step, Copy):
            problem = _copy_problem(manifest, step)
        else:
            problem = _dispatch_problem(manifest, variant, limits, step)
        if problem is not None:
            kernel = f" ({step.kernel})" if isinstance(step, Dispatch) else ""
            return f"step {number}{kernel}: {problem}"
    return None


def _copy_problem(manifest: Manifest, step: Copy) -> str | None:
    if step.source == step.target:
        return "copies within one buffer"  # WebGPU forbids it even where the ranges are apart
    if manifest.buffers[step.target].kind == "weights":
        return "writes weights"
    return None


def _dispatch_problem(
    manifest: Manifest, variant: Variant, limits: dict[str, int], step: Dispatch
) -> str | None:
    if step.shader >= len(manifest.shaders):
        return "has a shader that does not exist"
    shader = manifest.shaders[step.shader]
    if not set(shader.features) <= set(variant.features):
        return "has a shader with a feature that its variant does not name"
    if len(step.bindings) != len(shader.access):
        return f"binds {len(step.bindings)} buffers where its shader has {len(shader.access)}"
    if len(step.bindings) > limits["max-storage-buffers-per-shader-stage"]:
        return "binds more buffers than its variant asks for"
    for bound in step.bindings:
        problem = _bound_problem(manifest, limits, bound)
        if problem is not None:
            return problem
    return (
        _usage_problem(manifest, step, shader.access)
        or _workgroup_problem(limits, shader.workgroup)
        or _grid_problem(manifest, limits, step)
    )


def _bound_problem(manifest: Manifest, limits: dict[str, int], bound: Range) -> str | None:
    name = manifest.buffers[bound.buffer].name
    if bound.offset % ALIGNMENT:
        return f"binds {name!r} at an offset that is not a multiple of {ALIGNMENT}"
    if bound.nbytes > limits["max-storage-buffer-binding-size"]:
        return f"binds more of {name!r} than its variant asks for"
    return None


def _usage_problem(manifest: Manifest, step: Dispatch, access: str) -> str | None:
    """WebGPU forbids a buffer that is both read-only and writable in one dispatch, whatever the ranges."""
    bound = list(zip(step.bindings, access, strict=True))
    read = {binding.buffer for binding, how in bound if how == "r"}
    written = [binding for binding, how in bound if how == "w"]
    for binding in written:
        name = manifest.buffers[binding.buffer].name
        if manifest.buffers[binding.buffer].kind == "weights":
            return f"writes the weights in {name!r}"
        if binding.buffer in read:
            return f"reads and writes {name!r} through different bindings"
        if step.indirect is not None and binding.buffer == step.indirect.buffer:
            return f"takes its grid from {name!r}, which it writes"
    written.sort(key=lambda binding: (binding.buffer, binding.offset))
    for left, right in pairwise(written):
        if left.buffer == right.buffer and left.offset + left.nbytes > right.offset:
            return f"binds overlapping ranges of {manifest.buffers[left.buffer].name!r} for writing"
    return None


def _workgroup_problem(limits: dict[str, int], workgroup: list[int]) -> str | None:
    for axis, size in zip("xyz", workgroup, strict=True):
        if size > limits[f"max-compute-workgroup-size-{axis}"]:
            return f"has a workgroup of {size} along {axis}, more than its variant asks for"
    if prod(workgroup) > limits["max-compute-invocations-per-workgroup"]:
        return f"has a workgroup of {prod(workgroup)}, more than its variant asks for"
    return None


def _grid_problem(manifest: Manifest, limits: dict[str, int], step: Dispatch) -> str | None:
    if step.grid is not None:
        too_big = max(step.grid) > limits["max-compute-workgroups-per-dimension"]
        return f"has a grid of {list(step.grid)}" if too_big else None
    assert step.indirect is not None
    buffer = manifest.buffers[step.indirect.buffer]
    if not buffer.indirect:
        return f"takes its grid from {buffer.name!r}, which is not marked indirect"
    if step.indirect.nbytes != GRID_NBYTES:
        return f"takes its grid from {step.indirect.nbytes} bytes"
    return None
