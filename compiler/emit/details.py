"""details.json: what people and tools want to know of an artifact; `runtime/details.py` documents it."""

from __future__ import annotations

from typing import Any

from ..passes.front import DeviceModel
from ..plan import Plan, ProgramPlan
from .manifest import VERSION
from .names import bounded_names, weight_name
from .report_cost import kernel_traffic
from .schedules import Schedules

FILE = "details.json"

Json = dict[str, Any]


def details(device: DeviceModel, plan: Plan, schedules: Schedules, capacity: int) -> Json:
    """The whole file as JSON values; what a step moves is with `capacity` positions in the KV cache."""
    counts = device.counts
    programs: dict[str, dict[str, Json]] = {
        variant: {p.program.name: _program(p, capacity) for p in each}
        for variant, each in plan.variants.items()
    }
    first = next(iter(programs.values()))
    document: Json = {
        "format": "webgpu-compile details",
        "version": VERSION,
        "graph": {
            "opset": device.graph.opset,
            "nodes_before": counts.nodes_before,
            "nodes_after": counts.nodes_after,
            "memcpy_before": counts.memcpy_before,
            "memcpy_after": counts.memcpy_after,
        },
        "programs": {name: first[name] for name in schedules.shared()},
        "variants": {
            variant: {name: programs[variant][name] for name in own}
            for variant in programs
            if (own := schedules.own(variant))
        },
    }
    if not document["variants"]:
        del document["variants"]
    document["weights"] = {
        weight_name(weight.tensor.name): [source.initializer for source in weight.sources]
        for shard in plan.shards
        for weight in shard
    }
    return dict(bounded_names(document))


def _program(planned: ProgramPlan, capacity: int) -> Json:
    program = planned.program
    traffic = kernel_traffic(program, max(capacity, program.rows))
    steps = []
    for kernel, moved in zip(program.kernels, traffic, strict=True):
        numbers = {"reads": moved.reads, "writes": moved.writes, "cache": moved.cache, "work": kernel.work}
        steps.append({"nodes": list(kernel.nodes)} | {key: n for key, n in numbers.items() if n})
    return {
        "steps": steps,
        "lifetimes": [
            [life.tensor, place.buffer, place.nbytes, life.first, life.last]
            for life in planned.lifetimes
            for place in (planned.places[life.tensor],)
        ],
    }
