"""The pictures of the report as numbers; templates/report_figures.html.j2 draws them as SVG.

All of them are 1000 units wide; heights are the template's affair, except where rows make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan import BufferKind, Plan, ProgramPlan
from .report_cost import Cost, kernel_costs
from .report_format import kind_of, share, size
from .report_programs import run_titles, runs_of
from .report_repeats import Run

WIDTH = 1000.0
THINNEST = 0.15
"""Units: a kernel drawn thinner than this could be neither seen nor pointed at."""

LEAST = 24.0
"""Units of the narrowest kernel in a magnified strip."""

CHARACTER = 7.0
"""Units that a letter of a label takes, about."""

MAX_COLUMNS = 72
"""Steps that a lifetime chart shows; of a longer program the beginning and the end."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A coloured box from `x` on, with a label where one fits and a tooltip."""

    x: float
    width: float
    kind: str
    label: str
    title: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A named range under a strip."""

    x: float
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class Strip:
    """A stretch of a program, kernel beside kernel."""

    title: str
    note: str
    cells: tuple[Cell, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Bars of tensors in activation buffers; `gap` is (x, steps left out), in a chart cut in the middle."""

    program: str
    rows: tuple[tuple[str, int], ...]  # buffer and bytes
    cells: tuple[Cell, ...]
    ticks: tuple[Mark, ...]
    gap: Mark | None
    table: tuple[tuple[str, str, int, int, int], ...]  # tensor, buffer, bytes, first step, last step


@dataclass(frozen=True, slots=True)
class Memory:
    """One bar of all GPU memory; parts are (class, label, bytes)."""

    total: int
    parts: tuple[tuple[str, str, int], ...]
    cells: tuple[Cell, ...]


def program_strips(planned: ProgramPlan, depth: int, n_layers: int) -> tuple[Strip, ...]:
    """The whole program, width by bytes; then each stretch of it magnified, layers once."""
    kernels = planned.program.kernels
    costs = kernel_costs(planned.program, depth)
    whole = sum(cost.moved for cost in costs) or 1
    runs = runs_of(planned.program)
    edges = [0.0]
    for cost in costs:
        edges.append(edges[-1] + WIDTH * cost.moved / whole)
    titles = [
        f"step {i}: {kernel.name}, {size(cost.moved)} ({share(cost.moved, whole)})"
        for i, (kernel, cost) in enumerate(zip(kernels, costs, strict=True))
    ]
    kinds = [kind_of(kernel.name, kernel.template) for kernel in kernels]
    cells = tuple(
        Cell(edges[i], edges[i + 1] - edges[i], kinds[i], "", titles[i])
        for i in range(len(kernels))
        if edges[i + 1] - edges[i] >= THINNEST
    )
    marks = tuple(_mark(run, edges, n_layers) for run in runs if run.count > 1)
    note = f"{len(kernels)} dispatches, {size(whole)}"
    strips = [Strip("the whole program", note, cells, marks)]
    for run, title in zip(runs, run_titles(runs, n_layers), strict=True):
        part = range(run.start, run.start + run.period)
        moved = sum(costs[i].moved for i in part)
        times = f", {run.count} times" if run.count > 1 else ""
        note = f"{run.period} dispatch{'es' if run.period > 1 else ''}, {size(moved)}{times}"
        magnified = _magnified([costs[i] for i in part])
        strips.append(
            Strip(
                title,
                note,
                tuple(
                    Cell(x, width, kinds[i], _fitting(kernels[i].name, width), titles[i])
                    for i, (x, width) in zip(part, magnified, strict=True)
                ),
                tuple(
                    Mark(x, width, str(i) if width >= min(LEAST, CHARACTER * len(str(i))) else "")
                    for i, (x, width) in zip(part, magnified, strict=True)
                ),
            )
        )
    return tuple(strips)


def memory_bar(plan: Plan, caches: frozenset[str]) -> Memory:
    """All buffers by what they are for."""
    total = {"weights": 0, "cache": 0, "activations": 0, "io": 0, "state": 0}
    for buffer in plan.buffers:
        match buffer.kind:
            case BufferKind.WEIGHTS:
                total["weights"] += buffer.nbytes
            case BufferKind.ACTIVATION:
                total["activations"] += buffer.nbytes
            case BufferKind.STATE:
                total["cache" if buffer.name in caches else "state"] += buffer.nbytes
            case _:
                total["io"] += buffer.nbytes
    labels = {
        "weights": "weights",
        "cache": "KV cache",
        "activations": "activations",
        "io": "inputs and outputs",
        "state": "sequence and tokens",
    }
    parts = tuple((kind, labels[kind], nbytes) for kind, nbytes in total.items() if nbytes)
    everything = sum(total.values())
    cells, x = [], 0.0
    for kind, label, nbytes in parts:
        width = WIDTH * nbytes / everything
        title = f"{label}: {size(nbytes)} ({share(nbytes, everything)})"
        cells.append(Cell(x, width, kind, _fitting(label, width), title))
        x += width
    return Memory(everything, parts, tuple(cells))


def lifetime_chart(plan: Plan, planned: ProgramPlan, left: float = 110.0) -> Lifetimes:
    """One row an activation buffer, one column a step, one bar a tensor from first write to last use."""
    kernels = planned.program.kernels
    shown, cut = _shown_steps(runs_of(planned.program), len(kernels))
    columns = {step: i + (cut is not None and i >= cut) for i, step in enumerate(shown)}
    unit = (WIDTH - left) / max(len(shown) + (cut is not None), 1)
    numbers = sorted({planned.places[life.tensor].buffer for life in planned.lifetimes})
    rows = {number: i for i, number in enumerate(numbers)}
    cells, table = [], []
    for life in planned.lifetimes:
        steps = [step for step in range(life.first, life.last + 1) if step in columns]
        if not steps:
            continue
        place = planned.places[life.tensor]
        x, end = columns[steps[0]], columns[steps[-1]] + 1
        writer = kernels[life.first]
        kind = kind_of(writer.name, writer.template)
        buffer = plan.buffers[place.buffer].name
        title = f"{life.tensor}: {size(place.nbytes)} in {buffer}, steps {life.first} to {life.last}"
        width = (end - x) * unit - 1
        label = _fitting(_short(life.tensor), width)
        cells.append(Cell(left + x * unit, width, kind, label, title, rows[place.buffer]))
        table.append((life.tensor, buffer, place.nbytes, life.first, life.last))
    every = max(1, round(len(shown) / 24))
    ticks = tuple(
        Mark(left + columns[step] * unit, unit, str(step))
        for i, step in enumerate(shown)
        if i % every == 0 and not (cut is not None and cut - every < i < cut)
    )
    gap = None
    if cut is not None:
        gap = Mark(left + cut * unit, unit, f"{shown[cut - 1] + 1}–{shown[cut] - 1}")
    names = tuple((plan.buffers[number].name, plan.buffers[number].nbytes) for number in numbers)
    return Lifetimes(planned.program.name, names, tuple(cells), ticks, gap, tuple(table))


def _shown_steps(runs: Sequence[Run], n: int) -> tuple[list[int], int | None]:
    """The steps of a chart, and the index among them before which others are left out.

    The widest run of layers loses its middle; what is still too long loses its own.
    """
    start, end = n, n
    run = max(runs, key=lambda run: (run.count - 1) * run.period, default=None)
    if run is not None and run.count > 3:
        start, end = run.start + 2 * run.period, run.end - run.period
    if start + n - end > MAX_COLUMNS:
        start, end = MAX_COLUMNS * 2 // 3, n - MAX_COLUMNS // 3
    if start >= end:
        return list(range(n)), None
    return [*range(start), *range(end, n)], start


def _magnified(costs: Sequence[Cost]) -> list[tuple[float, float]]:
    """(x, width) by bytes, none narrower than can be seen."""
    least = min(LEAST, WIDTH / (2 * len(costs)))
    whole = sum(cost.moved for cost in costs) or 1
    free = WIDTH - least * len(costs)
    places, x = [], 0.0
    for cost in costs:
        width = least + free * cost.moved / whole
        places.append((x, width))
        x += width
    return places


def _mark(run: Run, edges: Sequence[float], n_layers: int) -> Mark:
    what = "layers" if run.count == n_layers else "times"
    return Mark(edges[run.start], edges[run.end] - edges[run.start], f"{run.count} {what}")


def _short(tensor: str) -> str:
    """/model/layers.0/mlp/Mul/output_0  =>  Mul"""
    *path, name = tensor.split("/")
    return path[-1] if path and path[-1] and name.startswith("output") else name


def _fitting(label: str, width: float) -> str:
    return label if CHARACTER * len(label) + 6 <= width else ""
