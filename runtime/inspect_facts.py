"""What an artifact is made of, in numbers: the same for the tables, for JSON, and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from .artifact import Artifact
from .details import Details, Lifetime, ProgramDetails, StepDetails, read_details
from .errors import RuntimeFailure
from .limits import buffers_of
from .programs import Copy, Dispatch, Program, Variant
from .schema import Manifest, Range
from .shards import tensor_names

ACCESS = {"r": "read", "w": "read_write"}
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
class View:
    """An artifact with one of its variants and what its details and weight files say of it."""

    artifact: Artifact
    variant: Variant
    details: Details
    weights: Mapping[tuple[int, int], str]  # (buffer, offset) -> name

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    def of(self, program: str) -> ProgramDetails:
        return self.details.of(self.variant, program)


@dataclass(frozen=True, slots=True)
class Found:
    """A step that somebody asked for."""

    program: str
    number: int
    step: Dispatch


def view(artifact: Artifact, variant: str | None) -> View:
    """The variant called `variant`, or the first.

    Raises:
        RuntimeFailure: there is none of that name; the details or a weight file are damaged.
    """
    weights = {
        (shard.buffer, offset): name
        for index, shard in enumerate(artifact.manifest.shards)
        for offset, name in tensor_names(artifact, index).items()
    }
    chosen = choose_variant_named(artifact.variants, variant)
    return View(artifact, chosen, read_details(artifact), weights)


class Names:
    """What is bound where, by tensor names: weights by their offset, activations by their lifetime."""

    def __init__(self, shown: View, program: str) -> None:
        self._manifest, self._weights = shown.manifest, shown.weights
        self._lives: dict[int, list[Lifetime]] = {}
        for life in shown.of(program).lifetimes:
            self._lives.setdefault(life.buffer, []).append(life)

    def of(self, number: int, bound: Range) -> str:
        """The tensor that step `number` binds, or else the buffer and the offset."""
        if (bound.buffer, bound.offset) in self._weights:
            return self._weights[bound.buffer, bound.offset]
        alive = [life for life in self._lives.get(bound.buffer, []) if life.first <= number <= life.last]
        if len(alive) == 1:
            return f"{alive[0].name} in {self._manifest.buffers[bound.buffer].name}"
        offset = f" +{bound.offset}" if bound.offset else ""
        return f"{self._manifest.buffers[bound.buffer].name}{offset}"


def program_facts(program: Program, details: ProgramDetails) -> ProgramFacts:
    dispatches = [step for step in program.steps if isinstance(step, Dispatch)]
    copied = sum(step.nbytes for step in program.steps if isinstance(step, Copy))
    return ProgramFacts(
        len(dispatches),
        len(program.steps) - len(dispatches),
        len({step.shader for step in dispatches}),
        sum(step.reads for step in details.steps) + copied,
        sum(step.writes for step in details.steps) + copied,
        sum(step.work for step in details.steps),
    )


def memory_by_kind(manifest: Manifest, variant: Variant) -> dict[str, int]:
    """Bytes of GPU memory of each kind that `variant` uses."""
    total = dict.fromkeys(KINDS, 0)
    for index in buffers_of(manifest, variant):
        total[manifest.buffers[index].kind] += manifest.buffers[index].nbytes
    return total


def choose_variant_named(variants: Sequence[Variant], name: str | None) -> Variant:
    """The variant called `name`, or the first.

    Raises:
        RuntimeFailure: there is none of that name.
    """
    for variant in variants:
        if name in (variant.name, None):
            return variant
    names = ", ".join(variant.name for variant in variants)
    raise RuntimeFailure(f"variant {name!r}", "is not in this artifact", f"choose from {names}")


def choose_programs(variant: Variant, name: str | None) -> Mapping[str, Program]:
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
    shown: View, programs: Mapping[str, Program], *, node: str | None, kernel: str | None
) -> list[Found]:
    """Dispatches of an ONNX node, or of a kernel by its name or WGSL file; `*` and `?` match as in a shell.

    Raises:
        RuntimeFailure: nothing is found; the hint names what is like it.
    """
    every = list(_dispatches(shown, programs))
    found = [
        item
        for item, details in every
        if (node is None or _matches(node, details.nodes))
        and (
            kernel is None
            or _matches(kernel, [item.step.kernel, shown.manifest.shaders[item.step.shader].file])
        )
    ]
    if found:
        return found
    option, wanted = ("--node", node) if node is not None else ("--kernel", kernel)
    names = {
        name
        for item, details in every
        for name in (details.nodes if node is not None else [item.step.kernel])
    }
    like = sorted(name for name in names if (wanted or "").lower() in name.lower())[:5] or sorted(names)[:5]
    raise RuntimeFailure(f"{option} {wanted}", "matches nothing", f"try one of {', '.join(like)}")


def _matches(pattern: str, names: list[str]) -> bool:
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def _dispatches(shown: View, programs: Mapping[str, Program]) -> Iterator[tuple[Found, StepDetails]]:
    for name, program in programs.items():
        for number, (step, details) in enumerate(zip(program.steps, shown.of(name).steps, strict=True)):
            if isinstance(step, Dispatch):
                yield Found(name, number, step), details


def as_json(shown: View, programs: Mapping[str, Program]) -> dict[str, Any]:
    """Everything that the tables show, as JSON values; indices are resolved to names."""
    manifest = shown.manifest
    return {
        "model": msgspec.to_builtins(manifest.model) | msgspec.to_builtins(shown.details.graph),
        "producer": manifest.producer,
        "capacity": manifest.sequence.capacity if manifest.sequence else None,
        "variants": [
            {
                "name": each.name,
                "features": list(each.features),
                "limits": dict(each.limits),
                "memory": memory_by_kind(manifest, each),
                "programs": {
                    name: msgspec.to_builtins(program_facts(program, shown.details.of(each, name)))
                    for name, program in each.programs.items()
                },
            }
            for each in shown.artifact.variants
        ],
        "variant": shown.variant.name,
        "buffers": [msgspec.to_builtins(buffer) for buffer in manifest.buffers],
        "programs": {
            name: {
                "rows": program.rows,
                "steps": _steps_json(shown, name, program),
                "lifetimes": [
                    {
                        "tensor": life.name,
                        "buffer": manifest.buffers[life.buffer].name,
                        "nbytes": life.nbytes,
                        "first": life.first,
                        "last": life.last,
                    }
                    for life in shown.of(name).lifetimes
                ],
            }
            for name, program in programs.items()
        },
    }


def _steps_json(shown: View, name: str, program: Program) -> list[dict[str, Any]]:
    names, details = Names(shown, name), shown.of(name).steps
    return [
        _step_json(shown.manifest, names, number, step, facts)
        for number, (step, facts) in enumerate(zip(program.steps, details, strict=True))
    ]


def _step_json(
    manifest: Manifest, names: Names, number: int, step: Dispatch | Copy, details: StepDetails
) -> dict[str, Any]:
    if isinstance(step, Copy):
        source, target = manifest.buffers[step.source].name, manifest.buffers[step.target].name
        return {"step": "copy", "source": source, "target": target, "nbytes": step.nbytes}
    shader = manifest.shaders[step.shader]
    return {
        "step": "dispatch",
        "kernel": step.kernel,
        "shader": shader.file,
        "entry": shader.entry,
        "constants": shader.constants,
        "workgroup": shader.workgroup,
        "nodes": details.nodes,
        "grid": step.grid or "indirect",
        "bindings": [
            {
                "tensor": names.of(number, bound),
                "buffer": manifest.buffers[bound.buffer].name,
                "offset": bound.offset,
                "nbytes": bound.nbytes,
                "access": ACCESS[access],
            }
            for bound, access in zip(step.bindings, shader.access, strict=True)
        ],
        "reads": details.reads,
        "writes": details.writes,
        "work": details.work,
    }
