"""The first page of the report: the model, what became of it, what it needs, how fast it could be at best."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..options import CompileOptions
from ..passes import front
from ..passes.front import Counts, DeviceModel
from ..plan import Plan, ProgramPlan
from ..target import SPEC_LIMITS
from .manifest import limits
from .report_cost import Cost, kernel_costs, total
from .shaders import ShaderSet

BANDWIDTHS = (100, 400, 1000, 4000)
"""GB/s: a laptop's shared memory, a desktop card, a large card, a data-centre card."""

TERAOPS = (1, 10, 100)
"""10¹² operations per second."""


@dataclass(frozen=True, slots=True)
class PassRow:
    """One pass that changed something: all its runs in a group."""

    group: str
    name: str
    meaning: str
    changes: int
    n_nodes: int


@dataclass(frozen=True, slots=True)
class VariantRow:
    """What a variant asks of the adapter. `raised`: (limit, value, the specification's default)."""

    name: str
    features: tuple[str, ...]
    raised: tuple[tuple[str, int, int], ...]
    n_shaders: int


@dataclass(frozen=True, slots=True)
class RoofRow:
    """A program's cost, and positions per second at most: by its bytes at each of `BANDWIDTHS`, by its
    operations at each of `TERAOPS`. A program without positions counts its replays."""

    program: str
    rows: int
    depth: int
    cost: Cost
    by_bandwidth: tuple[float, ...]
    by_operations: tuple[float, ...]


def facts(device: DeviceModel, plan: Plan, options: CompileOptions) -> list[tuple[str, str]]:
    """(name, value) of everything known about the family, in the words of the field."""
    config, caches = device.config, device.interface.caches
    found: list[tuple[str, str]] = [("opset", str(device.graph.opset))]
    constants = _constants(plan)
    if config.model_type:
        found.insert(0, ("family", config.model_type))
    if not caches:
        return found
    heads = {(cache.kv_heads, cache.head_size) for cache in caches}
    found.append(("layers", str(len(caches) // 2)))
    if config.hidden_size:
        found.append(("hidden size", f"{config.hidden_size:,}"))
    queries = sorted({str(c["heads"]) for c in constants if "n_splits" in c})
    kv = ", ".join(str(n) for n in sorted({n for n, _ in heads}))
    found.append(("attention", f"{', '.join(queries)} query heads, {kv} key/value heads"))
    found.append(("head size", ", ".join(str(n) for n in sorted({n for _, n in heads}))))
    windows = sorted(_numbers(constants, "window"))
    if windows:
        found.append(("sliding window", ", ".join(f"{w:,}" for w in windows) + " positions"))
    thresholds = _numbers(constants, "long_threshold")
    if thresholds:
        found.append(("LongRoPE", f"beyond {max(thresholds):,} positions"))
    formats = sorted({_format(c) for c in constants if c.get("format")})
    found.append(("linear layers", "; ".join(formats)))
    found.append(("cache", ", ".join(sorted({cache.dtype for cache in caches}))))
    if config.context_length:
        found.append(("context of the model", f"{config.context_length:,} positions"))
    found.append(("sequence driven by", {"gpu": "the GPU", "host": "the host"}[options.sequence_length]))
    found.append(("attention dispatch", options.attention_dispatch))
    return found


def _format(constants: Mapping[str, object]) -> str:
    name = {"q4": "4-bit", "f16": "f16", "f32": "f32"}.get(str(constants["format"]), str(constants["format"]))
    blocks = f", blocks of {constants['block_size']}" if constants["format"] == "q4" else ""
    int8 = ", int8 activations" if constants.get("activation") == "int8" else ""
    return f"{name}{blocks}{int8}"


def _numbers(constants: Sequence[Mapping[str, object]], name: str) -> set[int]:
    """The values other than 0 that kernels have for a constant."""
    return {value for each in constants if isinstance(value := each.get(name), int) and value}


def _constants(plan: Plan) -> list[dict[str, object]]:
    programs = next(iter(plan.variants.values()))
    return [dict(kernel.constants) for planned in programs for kernel in planned.program.kernels]


def pass_rows(counts: Counts) -> tuple[list[PassRow], list[str]]:
    """The passes that changed the graph, in the order of their first change; and the names of the others."""
    rows: dict[tuple[str, str], PassRow] = {}
    names: dict[str, None] = {}
    for record in counts.passes:
        names[record.name] = None
        if not record.changes:
            continue
        key = record.group, record.name
        before = rows[key].changes if key in rows else 0
        rows[key] = PassRow(
            record.group, record.name, _meaning(record.name), before + record.changes, record.n_nodes
        )
    changed = {name for _, name in rows}
    return list(rows.values()), [name for name in names if name not in changed]


def _meaning(name: str) -> str:
    """A pass's rule: the first line of its docstring."""
    text = inspect.getdoc(getattr(front, name, None)) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def variant_rows(plan: Plan, shaders: ShaderSet) -> list[VariantRow]:
    """The variants, most demanding first."""
    rows = []
    for variant, programs in plan.variants.items():
        needed = limits(plan, programs)
        raised = tuple((n, v, SPEC_LIMITS[n]) for n, v in needed.items() if v > SPEC_LIMITS[n])
        used = {shaders.shaders[i].file.name for key, i in shaders.index.items() if key[0] == variant}
        rows.append(VariantRow(variant, shaders.targets[variant].features, raised, len(used)))
    return rows


def roofline(programs: Sequence[ProgramPlan], capacity: int) -> list[RoofRow]:
    """What each program must move and compute: `decode` at several depths of the cache, chunks at two."""
    rows = []
    for planned in programs:
        program = planned.program
        if program.name.startswith("logits_"):
            continue  # a chunk with more outputs: scoring, not generation
        positions = max(program.rows, 1)
        for depth in _depths(program.rows, capacity):
            cost = total(kernel_costs(program, depth))
            rows.append(
                RoofRow(
                    program.name,
                    program.rows,
                    depth,
                    cost,
                    tuple(positions * each * 1e9 / max(cost.memory, 1) for each in BANDWIDTHS),
                    tuple(positions * each * 1e12 / max(cost.operations, 1) for each in TERAOPS),
                )
            )
    return rows


def _depths(rows: int, capacity: int) -> list[int]:
    if rows == 1:
        return sorted({1, min(1024, capacity), capacity})
    return sorted({rows, capacity}) if rows else [0]
