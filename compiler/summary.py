"""The summary at the end of a compilation: what went in, what came out, what it costs.

Compiled tiny-llama: out/ (78 files, 1.5 MiB)

nodes                 32 → 16
Memcpy nodes           2 → 0
host nodes             6 → 0
…
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .emit.model import sequence_json, state_nbytes
from .emit.names import model_name
from .emit.report_format import size
from .pipeline import Result
from .plan import BufferKind, Plan
from .tuning import Tuning


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the summary: what, how much, and a note to that; `part` of the row above it."""

    label: str
    value: str
    note: str = ""
    part: bool = False


def headline(result: Result) -> str:
    """What happened, in one line."""
    name = model_name(result.device.file)
    if result.options.check:
        return f"{name} compiles."
    if result.files is None:
        return f"{name}: stopped after stage {result.options.stop_after}, nothing written"
    return f"Compiled {name}: {result.out} ({len(result.files)} files, {size(sum(result.files.values()))})"


def rows(result: Result) -> list[Row]:
    """The lines of the summary, as far as the compilation went."""
    counts = result.device.counts
    found = [
        Row("nodes", _change(counts.nodes_before, counts.nodes_after)),
        Row(
            "Memcpy nodes", _change(counts.memcpy_before, counts.memcpy_after), "copies between host and GPU"
        ),
        Row("host nodes", _change(counts.host_nodes_before, counts.host_nodes_after), "that run on the CPU"),
    ]
    if result.tuning is not None:
        found += _tuning_rows(result.tuning)
    if result.plan is not None:
        found += _program_rows(result, result.plan) + _memory_rows(result, result.plan)
    return found


UNITS = {"residual": "lanes", "gated": "lanes", "tile": "positions", "splits": "workgroups"}
"""Of the fields of `Shapes` that are numbers."""


def _tuning_rows(tuning: Tuning) -> list[Row]:
    """What was tried, and the sum over the kernels of a token, each timed by itself with cold weights."""
    change = f"{1e6 * tuning.before:.1f} → {1e6 * tuning.after:.1f} µs"
    found = [Row(tuning.target.name, change, f"measured on {tuning.adapter.device}")]
    for trial in tuning.trials:
        value = "cannot run" if trial.seconds is None else f"{1e6 * trial.seconds:.1f} µs"
        note = f"{trial.value} {UNITS[trial.field]}" if trial.field in UNITS else str(trial.value)
        found.append(Row(trial.field, value, f"{note}{', chosen' if trial.chosen else ''}", part=True))
    return found


def _program_rows(result: Result, plan: Plan) -> list[Row]:
    """Kernels and dispatches; all variants have the same programs."""
    plans = next(iter(plan.variants.values()))
    found = []
    decode = next((p for p in plans if p.program.name == "decode"), None)
    if decode is not None:
        found.append(Row("dispatches per token", str(len(decode.program.kernels))))
    found.append(Row("programs", str(len(plans))))
    found += [Row(p.program.name, str(len(p.program.kernels)), "dispatches", part=True) for p in plans]
    n_kernels = sum(len(p.program.kernels) for programs in plan.variants.values() for p in programs)
    found.append(Row("kernels", str(n_kernels), f"variants {', '.join(plan.variants)}"))
    if result.shaders is not None:
        found.append(Row("shaders", str(len(result.shaders.files)), "WGSL files for all of them"))
    return found


def _memory_rows(result: Result, plan: Plan) -> list[Row]:
    caches = {name for cache in result.device.interface.caches for name in (cache.past, cache.present)}
    kv = sum(buffer.nbytes for buffer in plan.buffers if buffer.name in caches)
    sequence = sequence_json(result.device, plan, result.options)
    weights, activations = (state_nbytes(plan, kind) for kind in (BufferKind.WEIGHTS, BufferKind.ACTIVATION))
    total = sum(buffer.nbytes for buffer in plan.buffers)
    found = [Row("GPU memory", size(total)), Row("weights", size(weights), part=True)]
    if sequence is not None:
        found.append(Row("KV cache", size(kv), f"{sequence['capacity']} tokens", part=True))
    found.append(Row("activations", size(activations), part=True))
    found.append(Row("inputs, outputs", size(total - weights - kv - activations), part=True))
    return found


def _change(before: int, after: int) -> str:
    return f"{before} → {after}"


def print_summary(result: Result, stream: TextIO) -> None:
    """Print the summary: coloured and fitted to a terminal, else plain lines of any length."""
    if stream.isatty():
        console = Console(file=stream, highlight=False)
        console.print(_pretty(result))
    else:
        stream.write(plain(result))


def plain(result: Result) -> str:
    """The summary as text."""
    found = rows(result)
    label_width = max(len(_label(row)) for row in found)
    value_width = max(len(row.value) for row in found)
    lines = [f"{_label(row):{label_width}}  {row.value:>{value_width}}  {row.note}".rstrip() for row in found]
    return "\n".join([headline(result), "", *lines, ""])


def _pretty(result: Result) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in rows(result):
        table.add_row(Text(_label(row), "dim" if row.part else ""), _value(row), Text(row.note))
    style = "bold green" if result.files is not None or result.options.check else "bold"
    # Text, not strings: rich would take brackets in a path or a model's name for markup.
    return Group(Text(headline(result), style), Padding(table, (1, 0, 0, 0)))


def _label(row: Row) -> str:
    return "  " + row.label if row.part else row.label


def _value(row: Row) -> Text:
    before, arrow, after = row.value.partition(" → ")
    return Text.assemble((before, "dim"), (arrow, "dim"), (after, "bold")) if arrow else Text(row.value)
