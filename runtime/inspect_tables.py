"""An artifact as rich tables. Every text from the artifact goes through `plain`: it is data, not markup."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .inspect_facts import Found, Names, memory_by_kind, program_facts
from .limits import DEFAULTS, buffers_of
from .schema import Copy, Dispatch, Manifest, Program, Variant

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


def overview(manifest: Manifest, variant: Variant) -> RenderableType:
    """The default page: model, variants, memory and programs."""
    return Group(
        summary(manifest), variants(manifest), memory(manifest, variant), programs(manifest, variant)
    )


def summary(manifest: Manifest) -> RenderableType:
    model = manifest.model
    grid = Table.grid(padding=(0, 2))
    grid.add_row("model", plain(f"{model.name} ({model.kind}, opset {model.opset})"))
    grid.add_row("nodes", f"{model.nodes_before} in the model, {model.nodes_after} compiled")
    grid.add_row("Memcpy nodes", f"{model.memcpy_before} before, {model.memcpy_after} after")
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
    grid.add_row("weights", f"{len(manifest.weights)} tensors in {len(manifest.shards)} files")
    grid.add_row("shaders", f"{len(manifest.shaders)} WGSL files")
    grid.add_row("compiled by", plain(manifest.producer))
    return grid


def variants(manifest: Manifest) -> Table:
    """What each variant requires; limits only where they exceed WebGPU's defaults."""
    table = Table(
        "variant", "features", "limits above the defaults", "shaders", "GPU memory", title="Variants"
    )
    for variant in manifest.variants:
        above = [f"{name} {n}" for name, n in variant.limits.items() if n > DEFAULTS[name]]
        shaders = {
            step.shader
            for program in variant.programs.values()
            for step in program.steps
            if isinstance(step, Dispatch)
        }
        total = human(sum(memory_by_kind(manifest, variant).values()))
        features = ", ".join(variant.features) or "none"
        if variant.adapter is not None:
            features += f"; only on {variant.adapter.device or variant.adapter.vendor}"
        table.add_row(
            plain(variant.name), plain(features), ", ".join(above) or "none", str(len(shaders)), total
        )
    return table


def memory(manifest: Manifest, variant: Variant) -> RenderableType:
    """Buffers of a variant, largest first, and their sum by kind."""
    table = Table("buffer", "kind", "size", "tensors in their lifetimes", title="GPU memory")
    table.columns[2].justify = "right"
    tensors: dict[int, set[str]] = {}
    for program in variant.programs.values():
        for life in program.lifetimes:
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


def programs(manifest: Manifest, variant: Variant) -> Table:
    """One row a program: its totals."""
    title = plain(f"Programs of variant {variant.name}")
    table = Table(
        "program", "rows", "dispatches", "copies", "kernels", "reads", "writes", "MACs", title=title
    )
    for name, program in variant.programs.items():
        facts = program_facts(program)
        counts = (program.rows, facts.dispatches, facts.copies, facts.kernels)
        moved = (human(facts.reads), human(facts.writes), count(facts.work))
        table.add_row(plain(name), *map(str, counts), *moved)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def steps(manifest: Manifest, name: str, program: Program) -> Table:
    """One row a step of a program."""
    table = _step_table(plain(f"Program {name}"))
    names = Names(manifest, program)
    for number, step in enumerate(program.steps):
        table.add_row(*_step_row(manifest, names, number, step))
    return table


def found_steps(manifest: Manifest, programs: Mapping[str, Program], found: list[Found]) -> Table:
    """The steps that were asked for, of any program."""
    table = _step_table(None, "program")
    names = {name: Names(manifest, program) for name, program in programs.items()}
    for item in found:
        row = _step_row(manifest, names[item.program], item.number, item.step)
        table.add_row(plain(item.program), *row)
    return table


def lifetimes(manifest: Manifest, name: str, program: Program) -> Table | None:
    """Activations of a program: where they live, from which step to which."""
    if not program.lifetimes:
        return None
    table = Table("buffer", "tensor", "size", "steps", title=plain(f"Lifetimes in {name}"))
    table.columns[2].justify = table.columns[3].justify = "right"
    for life in sorted(program.lifetimes, key=lambda life: (life.buffer, life.first)):
        buffer = plain(manifest.buffers[life.buffer].name)
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
    manifest: Manifest, names: Names, number: int, step: Dispatch | Copy
) -> tuple[RenderableType, ...]:
    buffers = manifest.buffers
    if isinstance(step, Copy):
        moved = human(step.nbytes)
        where = plain(f"{buffers[step.source].name} → {buffers[step.target].name}")
        return str(number), "copy", "", where, "", moved, moved
    shader = manifest.shaders[step.shader]
    bindings = [
        f"{i} {'rw' if how == 'read_write' else 'r '} {names.of(number, bound)}"
        for i, (bound, how) in enumerate(zip(step.bindings, shader.access, strict=True))
    ]
    if step.grid is not None:
        grid = "×".join(map(str, step.grid))
    else:
        assert step.indirect is not None
        grid = f"indirect: {buffers[step.indirect.buffer].name}"
    kernel = f"{step.kernel}\n{shader.file}"
    return (
        str(number),
        _lines(kernel.splitlines()),
        _lines(step.nodes),
        _lines(bindings),
        plain(grid),
        human(step.reads),
        human(step.writes),
    )


def _lines(lines: list[str]) -> Text:
    return Text("\n").join(plain(line) for line in lines)
