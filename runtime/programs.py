"""Programs as a variant runs them: what the manifest says once, spelled out step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import schema
from .errors import InconsistencyError
from .schema import Adapter, Manifest, Port, Range


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run `shader` over `grid` workgroups, or over those that are found in `indirect`.

    Binding i of the shader is `bindings[i]`.
    """

    kernel: str
    shader: int
    bindings: tuple[Range, ...]
    grid: tuple[int, ...] | None
    indirect: Range | None


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `nbytes` between buffers on the GPU."""

    source: int
    source_offset: int
    target: int
    target_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Program:
    """A static schedule. `rows` sequence positions per replay; 0 for a model without a sequence."""

    rows: int
    steps: tuple[Dispatch | Copy, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One shader set with the WebGPU features and limits that it needs, and its programs.

    `adapter` is the GPU that it was tuned for; `software` is for GPUs that a CPU plays.
    """

    name: str
    features: Sequence[str]
    limits: Mapping[str, int]
    programs: Mapping[str, Program]
    adapter: Adapter | None = None
    software: bool = False


def spell_out(manifest: Manifest) -> tuple[Variant, ...]:
    """The variants with their programs, in the manifest's order.

    Raises:
        InconsistencyError: a step names a kernel or a range that is not there.
    """
    return tuple(_variant(manifest, variant) for variant in manifest.variants)


def _variant(manifest: Manifest, variant: schema.Variant) -> Variant:
    if len(variant.launches) != len(manifest.kernels):
        raise InconsistencyError(f"variant {variant.name!r} does not launch as many kernels as there are")
    programs = {}
    for name, program in (manifest.programs | variant.programs).items():
        steps = []
        for number, step in enumerate(program.steps):
            try:
                steps.append(_step(manifest, variant.launches, step))
            except InconsistencyError as error:
                where = f"program {name!r} of variant {variant.name!r}, step {number}"
                raise InconsistencyError(f"{where}: {error}") from None
        programs[name] = Program(program.rows, tuple(steps), tuple(program.inputs), tuple(program.outputs))
    return Variant(
        variant.name, variant.features, variant.limits, programs, variant.adapter, variant.software
    )


def _step(
    manifest: Manifest, launches: Sequence[schema.Launch | None], step: list[int] | schema.Copy
) -> Dispatch | Copy:
    if isinstance(step, schema.Copy):
        source, target = _range(manifest, step.source), _range(manifest, step.target)
        if source.nbytes != target.nbytes:
            raise InconsistencyError("copies between ranges of different sizes")
        return Copy(source.buffer, source.offset, target.buffer, target.offset, source.nbytes)
    kernel, *ranges = step
    launch = launches[kernel] if kernel < len(launches) else None
    if launch is None:
        raise InconsistencyError("runs a kernel that its variant does not have")
    bindings = tuple(_range(manifest, index) for index in ranges)
    return Dispatch(
        manifest.kernels[kernel],
        launch.shader,
        bindings,
        tuple(launch.grid) if isinstance(launch.grid, list) else None,
        None if isinstance(launch.grid, list) else _range(manifest, launch.grid),
    )


def _range(manifest: Manifest, index: int) -> Range:
    if index >= len(manifest.ranges):
        raise InconsistencyError(f"uses range {index}, which does not exist")
    return manifest.ranges[index]
