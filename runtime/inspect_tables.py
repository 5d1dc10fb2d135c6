"""An artifact as rich tables. Every text from the artifact goes through `plain`: it is data, not markup."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .details import StepDetails
from .inspect_facts import Found, Names, View, memory_by_kind, program_facts
from .limits import DEFAULTS, buffers_of
from .programs import Copy, Dispatch, Program
from .schema import Manifest

MAX_BUFFERS = 24


def plain(value: object) -> Text:
    """Text that a terminal shows as it is: no markup, and no control characters."""
    return Text(printable(str(value)))


def printable(text: str, keep: str = "") -> str:
    """Replace control characters, which could drive a terminal, by their escapes."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def human(nbytes: int) -> str:
    """1536  =>  1.5 KiB"""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def count(n: int) -> str:
    """Multiply-accumulates: 1500000  =>  1.5 M"""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= limit:
            return f"{n / limit:.1f} {unit}"
    return str(n)


def overview(shown: View) -> RenderableType:
    """The default page: model, variants, memory and programs."""
    return Group(summary(shown), variants(shown), memory(shown), programs(shown))


def summary(shown: View) -> RenderableType:
    manifest, graph = shown.manifest, shown.details.graph
    model = manifest.model
    grid = Table.grid(padding=(0, 2))
    grid.add_row("model", plain(f"{model.name} ({model.kind}, opset {graph.opset})"))
    grid.add_row("nodes", f"{graph.nodes_before} in the model, {graph.nodes_after} compiled")
    grid.add_row("Memcpy nodes", f"{graph.memcpy_before} before, {graph.memcpy_after} after")
    if manifest.sequence is not None:
        sequence = manifest.sequence
        logits = "every position" if sequence.all_logits else "the last position"
        grid.add_row("sequence", f"{sequence.capacity} positions, vocabulary of {sequence.vocab_size}")
        grid.add_row("", f"driven by the {sequence.driven_by.upper()}, logits of {logits}")
    for word, ports in (("inputs", model.inputs), ("outputs", model.outputs)):
        for i, port in enumerate(ports[:4]):
            shape = ", ".join(map(str, port.shape))
            grid.add_row("" if i else word, plain(f"{port.name}: {port.dtype}[{shape}]"))
        if len(ports) > 4:
            grid.add_row("", f"and {len(ports) - 4} more")
    grid.add_row("weights", f"{len(shown.weights)} tensors in {len(manifest.shards)} files")
    grid.add_row("shaders", f"{len(manifest.modules)} WGSL files")
    grid.add_row("compiled by", plain(manifest.producer))
    return grid


def variants(shown: View) -> Table:
    """What each variant requires; limits only where they exceed WebGPU's defaults."""
    table = Table(
        "variant", "features", "limits above the defaults", "shaders", "GPU memory", title="Variants"
    )
    for variant in shown.artifact.variants:
        above = [f"{name} {n}" for name, n in variant.limits.items() if n > DEFAULTS[name]]
        shaders = {
            step.shader
            for program in variant.programs.values()
            for step in program.steps
            if isinstance(step, Dispatch)
        }
        total = human(sum(memory_by_kind(shown.manifest, variant).values()))
        features = ", ".join(variant.features) or "none"
        if variant.adapter is not None:
            features += f"; only on {variant.adapter.device or variant.adapter.vendor}"
        table.add_row(
            plain(variant.name), plain(features), ", ".join(above) or "none", str(len(shaders)), total
        )
    return table


def memory(shown: View) -> RenderableType:
    """Buffers of the variant, largest first, and their sum by kind."""
    manifest, variant = shown.manifest, shown.variant
    table = Table("buffer", "kind", "size", "tensors in their lifetimes", title="GPU memory")
    table.columns[2].justify = "right"
    tensors: dict[int, set[str]] = {}
    for program in variant.programs:
        for life in shown.of(program).lifetimes:
            tensors.setdefault(life.buffer, set()).add(life.name)
    used = sorted(buffers_of(manifest, variant), key=lambda index: -manifest.buffers[index].nbytes)
    for index in used[:MAX_BUFFERS]:
        buffer = manifest.buffers[index]
        held = tensors.get(index, set())
        table.add_row(plain(buffer.name), buffer.kind, human(buffer.nbytes), str(len(held)) if held else "")
    if len(used) > MAX_BUFFERS:
        rest = sum(manifest.buffers[index].nbytes for index in used[MAX_BUFFERS:])
        table.add_row(f"{len(used) - MAX_BUFFERS} more", "", human(rest), "")
    table.add_section()
    for kind, nbytes in memory_by_kind(manifest, variant).items():
        if nbytes:
            table.add_row("", kind, human(nbytes), "")
    return table


def programs(shown: View) -> Table:
    """One row a program: its totals."""
    title = plain(f"Programs of variant {shown.variant.name}")
    table = Table(
        "program", "rows", "dispatches", "copies", "kernels", "reads", "writes", "MACs", title=title
    )
    for name, program in shown.variant.programs.items():
        facts = program_facts(program, shown.of(name))
        counts = (program.rows, facts.dispatches, facts.copies, facts.kernels)
        moved = (human(facts.reads), human(facts.writes), count(facts.work))
        table.add_row(plain(name), *map(str, counts), *moved)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def steps(shown: View, name: str, program: Program) -> Table:
    """One row a step of a program."""
    table = _step_table(plain(f"Program {name}"))
    names, details = Names(shown, name), shown.of(name).steps
    for number, step in enumerate(program.steps):
        table.add_row(*_step_row(shown.manifest, names, number, step, details[number]))
    return table


def found_steps(shown: View, found: list[Found]) -> Table:
    """The steps that were asked for, of any program."""
    table = _step_table(None, "program")
    names = {name: Names(shown, name) for name in {item.program for item in found}}
    for item in found:
        details = shown.of(item.program).steps[item.number]
        row = _step_row(shown.manifest, names[item.program], item.number, item.step, details)
        table.add_row(plain(item.program), *row)
    return table


def lifetimes(shown: View, name: str) -> Table | None:
    """Activations of a program: where they live, from which step to which."""
    found = shown.of(name).lifetimes
    if not found:
        return None
    table = Table("buffer", "tensor", "size", "steps", title=plain(f"Lifetimes in {name}"))
    table.columns[2].justify = table.columns[3].justify = "right"
    for life in sorted(found, key=lambda life: (life.buffer, life.first)):
        buffer = plain(shown.manifest.buffers[life.buffer].name)
        table.add_row(buffer, plain(life.name), human(life.nbytes), f"{life.first}..{life.last}")
    return table


def _step_table(title: Text | None, *first: str) -> Table:
    table = Table(*first, "step", "kernel", "ONNX nodes", "bindings", "grid", "reads", "writes", title=title)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[-2:]:
        column.justify = "right"
    return table


def _step_row(
    manifest: Manifest, names: Names, number: int, step: Dispatch | Copy, details: StepDetails
) -> tuple[RenderableType, ...]:
    buffers = manifest.buffers
    if isinstance(step, Copy):
        moved = human(step.nbytes)
        where = plain(f"{buffers[step.source].name} → {buffers[step.target].name}")
        return str(number), "copy", "", where, "", moved, moved
    shader = manifest.shaders[step.shader]
    bindings = [
        f"{i} {'rw' if how == 'w' else 'r '} {names.of(number, bound)}"
        for i, (bound, how) in enumerate(zip(step.bindings, shader.access, strict=True))
    ]
    if step.grid is not None:
        grid = "×".join(map(str, step.grid))
    else:
        assert step.indirect is not None
        grid = f"indirect: {buffers[step.indirect.buffer].name}"
    kernel = f"{step.kernel}\n{shader.label}"
    return (
        str(number),
        _lines(kernel.splitlines()),
        _lines(details.nodes),
        _lines(bindings),
        plain(grid),
        human(details.reads),
        human(details.writes),
    )


def _lines(lines: list[str]) -> Text:
    return Text("\n").join(plain(line) for line in lines)
