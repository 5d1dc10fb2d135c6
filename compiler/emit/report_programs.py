"""The programs as tables: one row per kernel, repeated layers once.

Variants differ in their shaders, hardly ever in their schedules: programs whose schedules agree share a
table, with a link to each variant's shader.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..plan import Plan, ProgramPlan
from ..program import Access, IndirectGrid, Kernel, Program
from .report_cost import Cost, kernel_costs, total
from .report_format import kind_of
from .report_repeats import Run, repeats
from .report_wgsl import file_numbers
from .shaders import ShaderSet

MAX_STEPS_NAMED = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """A binding as the table shows it."""

    variable: str
    tensor: str
    writes: bool
    buffer: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel; of a repeated one the first, and the cost of one. `shaders`: (variant, shader numbers)."""

    steps: str
    count: int
    kernel: str
    kind: str
    nodes: tuple[str, ...]
    grid: str
    workgroup: str
    bindings: tuple[Bound, ...]
    cost: Cost
    shaders: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a program; `count` says how often it runs, `title` what it is."""

    title: str
    count: int
    rows: tuple[Row, ...]
    cost: Cost  # of one repetition


@dataclass(frozen=True, slots=True)
class ProgramTable:
    """One program of one or more variants that have the same schedule."""

    name: str
    variants: tuple[str, ...]
    depth: int
    n_steps: int
    cost: Cost
    sections: tuple[Section, ...]


def program_tables(plan: Plan, shaders: ShaderSet, n_layers: int, depth: int) -> tuple[ProgramTable, ...]:
    """Every program once; `depth` positions in the cache are assumed for what it costs."""
    shared: dict[Hashable, list[tuple[str, ProgramPlan]]] = {}
    for variant, programs in plan.variants.items():
        for planned in programs:
            shared.setdefault(_schedule(planned.program), []).append((variant, planned))
    return tuple(_table(plan, shaders, users, n_layers, depth) for users in shared.values())


def signature(kernel: Kernel) -> Hashable:
    """Kernels alike in this are the same kernel of another layer."""
    return kernel.name, kernel.template, kernel.workgroup, kernel.grid if _fixed(kernel) else None


def runs_of(program: Program) -> tuple[Run, ...]:
    return repeats([signature(kernel) for kernel in program.kernels])


def run_titles(runs: Sequence[Run], n_layers: int) -> list[str]:
    """Names for the stretches of a program: layers where there are as many as the model has, else repeats."""
    titles = []
    what = "the layers" if any(run.count == n_layers for run in runs) else "the repetitions"
    at = max(range(len(runs)), key=lambda i: (runs[i].count - 1) * runs[i].period, default=0)
    for i, run in enumerate(runs):
        if run.count > 1:
            titles.append("one layer" if run.count == n_layers else f"one of {run.count} repetitions")
        elif runs[at].count == 1:
            titles.append("all dispatches")
        else:
            titles.append(f"before {what}" if i < at else f"after {what}")
    return titles


def _schedule(program: Program) -> Hashable:
    return program.name, tuple(
        (kernel.name, kernel.grid, kernel.nodes, len(kernel.bindings)) for kernel in program.kernels
    )


def _table(
    plan: Plan, shaders: ShaderSet, users: Sequence[tuple[str, ProgramPlan]], n_layers: int, depth: int
) -> ProgramTable:
    planned = users[0][1]
    program = planned.program
    # A chunk of a prompt fills the cache at least as far as it is long.
    costs = kernel_costs(program, max(depth, program.rows))
    runs = runs_of(program)
    sections = []
    for run, title in zip(runs, run_titles(runs, n_layers), strict=True):
        rows = tuple(_row(plan, shaders, users, run.members(i), costs) for i in range(run.period))
        sections.append(Section(title, run.count, rows, total(row.cost for row in rows)))
    return ProgramTable(
        program.name,
        tuple(variant for variant, _ in users),
        max(depth, program.rows),
        len(program.kernels),
        total(costs),
        tuple(sections),
    )


def _row(
    plan: Plan,
    shaders: ShaderSet,
    users: Sequence[tuple[str, ProgramPlan]],
    members: range,
    costs: Sequence[Cost],
) -> Row:
    planned = users[0][1]
    kernel = planned.program.kernels[members[0]]
    used = tuple(
        (variant, tuple(dict.fromkeys(_shader(shaders, variant, each.program, step) for step in members)))
        for variant, each in users
    )
    return Row(
        _steps(members),
        len(members),
        kernel.name,
        kind_of(kernel.name, kernel.template),
        kernel.nodes,
        _grid(kernel),
        " × ".join(map(str, kernel.workgroup)),
        tuple(_bound(plan, planned, kernel, i) for i in range(len(kernel.bindings))),
        costs[members[0]],
        used,
    )


def _bound(plan: Plan, planned: ProgramPlan, kernel: Kernel, i: int) -> Bound:
    binding = kernel.bindings[i]
    place = planned.places[binding.tensor]
    name = plan.buffers[place.buffer].name
    return Bound(binding.variable, binding.tensor, binding.access is Access.READ_WRITE, name, place.nbytes)


def _shader(shaders: ShaderSet, variant: str, program: Program, step: int) -> int:
    return file_numbers(shaders)[shaders.index[variant, program.kernels[step].name, program.name, step]]


def _steps(members: range) -> str:
    if len(members) <= MAX_STEPS_NAMED:
        return ", ".join(map(str, members))
    return f"{members[0]}, {members[1]}, … {members[-1]}"


def _grid(kernel: Kernel) -> str:
    if isinstance(kernel.grid, IndirectGrid):
        most = " × ".join(map(str, kernel.worst_grid or ()))
        return f"from GPU memory{f', at most {most}' if most else ''}"
    return " × ".join(map(str, kernel.grid))


def _fixed(kernel: Kernel) -> bool:
    return not isinstance(kernel.grid, IndirectGrid)
