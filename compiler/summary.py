"""The summary at the end of a compilation: what went in, what came out, what it costs."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .emit.model import state_nbytes
from .pipeline import Result
from .plan import ProgramPlan


def summary(result: Result) -> Group:
    """A table of what the passes and the plan came to, as far as the compilation went."""
    counts = result.device.counts
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("nodes", f"{counts.nodes_before} → {counts.nodes_after}")
    table.add_row("Memcpy nodes", f"{counts.memcpy_before} → {counts.memcpy_after}")
    table.add_row("host nodes", f"{counts.host_nodes_before} → {counts.host_nodes_after}")
    if result.plan is not None:
        plans = [plan for variant in result.plan.variants.values() for plan in variant]
        first = next(iter(result.plan.variants.values()))
        table.add_row("variants", ", ".join(result.plan.variants))
        table.add_row("programs", ", ".join(_program(plan) for plan in first))
        if result.shaders is not None:
            kernels = sum(len(plan.program.kernels) for plan in plans)
            table.add_row("shaders", f"{len(result.shaders.shaders)} for {kernels} kernels")
        decode = next((plan for plan in first if plan.program.name == "decode"), None)
        if decode is not None:
            table.add_row("dispatches per token", str(len(decode.program.kernels)))
        caches = {name for cache in result.device.interface.caches for name in (cache.past, cache.present)}
        kv = sum(b.nbytes for b in result.plan.buffers if b.name in caches)
        parts = [f"weights {size(state_nbytes(result.plan, 'weights'))}"]
        parts += [f"KV cache {size(kv)}"] if kv else []
        parts += [f"activations {size(state_nbytes(result.plan, 'activation'))}"]
        table.add_row("GPU memory", ", ".join(parts))
    if result.files is not None and result.out is not None:
        table.add_row("written", f"{result.out}: {len(result.files)} files, {size(sum(result.files.values()))}")
    if result.options.check:
        return Group(table, Text("The model compiles.", style="green"))
    return Group(table)


def _program(plan: ProgramPlan) -> str:
    return f"{plan.program.name} ({len(plan.program.kernels)} dispatches)"


def size(nbytes: int) -> str:
    """Bytes for people."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
