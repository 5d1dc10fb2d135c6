"""What an artifact is made of, in numbers: the same for the tables, for JSON, and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from .errors import RuntimeFailure
from .limits import buffers_of
from .schema import Bound, Copy, Dispatch, Lifetime, Manifest, Program, Variant

KINDS = ("weights", "state", "activation", "input", "output")


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """Totals of one program: bytes that its kernels read and write, multiply-accumulates."""

    dispatches: int
    copies: int
    kernels: int
    reads: int
    writes: int
    work: int


@dataclass(frozen=True, slots=True)
class Found:
    """A step that somebody asked for."""

    program: str
    number: int
    step: Dispatch


class Names:
    """What is bound where, by tensor names: weights by their offset, activations by their lifetime."""

    def __init__(self, manifest: Manifest, program: Program) -> None:
        self._manifest = manifest
        shard_buffers = [shard.buffer for shard in manifest.shards]
        self._weights = {(shard_buffers[w.shard], w.offset): w.name for w in manifest.weights}
        self._lives: dict[int, list[Lifetime]] = {}
        for life in program.lifetimes:
            self._lives.setdefault(life.buffer, []).append(life)

    def of(self, number: int, bound: Bound) -> str:
        """The tensor that step `number` binds, or else the buffer and the offset."""
        if (bound.buffer, bound.offset) in self._weights:
            return self._weights[bound.buffer, bound.offset]
        alive = [life for life in self._lives.get(bound.buffer, []) if life.first <= number <= life.last]
        if len(alive) == 1:
            return f"{alive[0].name} in {self._manifest.buffers[bound.buffer].name}"
        offset = f" +{bound.offset}" if bound.offset else ""
        return f"{self._manifest.buffers[bound.buffer].name}{offset}"


def program_facts(program: Program) -> ProgramFacts:
    dispatches = [step for step in program.steps if isinstance(step, Dispatch)]
    copied = sum(step.nbytes for step in program.steps if isinstance(step, Copy))
    return ProgramFacts(
        len(dispatches),
        len(program.steps) - len(dispatches),
        len({step.shader for step in dispatches}),
        sum(step.reads for step in dispatches) + copied,
        sum(step.writes for step in dispatches) + copied,
        sum(step.work for step in dispatches),
    )


def memory_by_kind(manifest: Manifest, variant: Variant) -> dict[str, int]:
    """Bytes of GPU memory of each kind that `variant` uses."""
    total = dict.fromkeys(KINDS, 0)
    for index in buffers_of(manifest, variant):
        total[manifest.buffers[index].kind] += manifest.buffers[index].nbytes
    return total


def choose_variant_named(manifest: Manifest, name: str | None) -> Variant:
    """The variant called `name`, or the first.

    Raises:
        RuntimeFailure: there is none of that name.
    """
    if name is None:
        return manifest.variants[0]
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    names = ", ".join(variant.name for variant in manifest.variants)
    raise RuntimeFailure(f"variant {name!r}", "is not in this artifact", f"choose from {names}")


def choose_programs(variant: Variant, name: str | None) -> dict[str, Program]:
    """The program called `name`; all of them for `all`.

    Raises:
        RuntimeFailure: there is none of that name.
    """
    if name is None or name == "all":
        return variant.programs
    if name not in variant.programs:
        names = ", ".join(variant.programs)
        raise RuntimeFailure(f"program {name!r}", "is not in this artifact", f"choose from {names} or all")
    return {name: variant.programs[name]}


def find_steps(
    manifest: Manifest, programs: dict[str, Program], *, node: str | None, kernel: str | None
) -> list[Found]:
    """Dispatches of an ONNX node, or of a kernel by its name or WGSL file; `*` and `?` match as in a shell.

    Raises:
        RuntimeFailure: nothing is found; the hint names what is like it.
    """
    found = [
        Found(program, number, step)
        for program, number, step in _dispatches(programs)
        if (node is None or _matches(node, step.nodes))
        and (kernel is None or _matches(kernel, [step.kernel, manifest.shaders[step.shader].file]))
    ]
    if found:
        return found
    option, wanted = ("--node", node) if node is not None else ("--kernel", kernel)
    names = {
        name
        for _, _, step in _dispatches(programs)
        for name in (step.nodes if node is not None else [step.kernel])
    }
    like = sorted(name for name in names if (wanted or "").lower() in name.lower())[:5] or sorted(names)[:5]
    raise RuntimeFailure(f"{option} {wanted}", "matches nothing", f"try one of {', '.join(like)}")


def _matches(pattern: str, names: list[str]) -> bool:
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def _dispatches(programs: dict[str, Program]) -> Iterator[tuple[str, int, Dispatch]]:
    for name, program in programs.items():
        for number, step in enumerate(program.steps):
            if isinstance(step, Dispatch):
                yield name, number, step


def as_json(manifest: Manifest, variant: Variant, programs: dict[str, Program]) -> dict[str, Any]:
    """Everything that the tables show, as JSON values; indices are resolved to names."""
    return {
        "model": msgspec.to_builtins(manifest.model),
        "producer": manifest.producer,
        "capacity": manifest.sequence.capacity if manifest.sequence else None,
        "variants": [
            {
                "name": each.name,
                "features": list(each.features),
                "limits": each.limits,
                "memory": memory_by_kind(manifest, each),
                "programs": {
                    name: msgspec.to_builtins(program_facts(program))
                    for name, program in each.programs.items()
                },
            }
            for each in manifest.variants
        ],
        "variant": variant.name,
        "buffers": [msgspec.to_builtins(buffer) for buffer in manifest.buffers],
        "programs": {
            name: {
                "rows": program.rows,
                "steps": _steps_json(manifest, program),
                "lifetimes": [
                    {
                        "tensor": life.name,
                        "buffer": manifest.buffers[life.buffer].name,
                        "nbytes": life.nbytes,
                        "first": life.first,
                        "last": life.last,
                    }
                    for life in program.lifetimes
                ],
            }
            for name, program in programs.items()
        },
    }


def _steps_json(manifest: Manifest, program: Program) -> list[dict[str, Any]]:
    names = Names(manifest, program)
    return [_step_json(manifest, names, number, step) for number, step in enumerate(program.steps)]


def _step_json(manifest: Manifest, names: Names, number: int, step: Dispatch | Copy) -> dict[str, Any]:
    if isinstance(step, Copy):
        source, target = manifest.buffers[step.source].name, manifest.buffers[step.target].name
        return {"step": "copy", "source": source, "target": target, "nbytes": step.nbytes}
    shader = manifest.shaders[step.shader]
    return {
        "step": "dispatch",
        "kernel": step.kernel,
        "shader": shader.file,
        "workgroup": shader.workgroup,
        "nodes": step.nodes,
        "grid": step.grid or "indirect",
        "bindings": [
            {
                "tensor": names.of(number, bound),
                "buffer": manifest.buffers[bound.buffer].name,
                "offset": bound.offset,
                "nbytes": bound.nbytes,
                "access": access,
            }
            for bound, access in zip(step.bindings, shader.access, strict=True)
        ],
        "reads": step.reads,
        "writes": step.writes,
        "work": step.work,
    }
