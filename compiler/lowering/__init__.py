"""Lowering: one function per operator turns a node of the device graph into kernels.

Importing this package registers every lowering; `builder.OPS` is the table.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..options import CompileOptions
from ..passes.front import DeviceModel
from ..passes.program import ProgramGraph, program_graph
from ..program import Program, Role
from ..target import DEFAULT_TARGETS, TARGETS, Target
from . import elementwise, gather, gqa, matmul, norm, quantize, sequence_state, views
from .builder import STORAGE, Builder, record_of
from .decoder import decoder_shape, lower_decoder, program_specs

__all__ = ["decoder_shape", "lower_model", "program_graphs", "record_of", "variants_of"]

_REGISTERED = (elementwise, gather, gqa, matmul, norm, quantize, sequence_state, views)


def variants_of(options: CompileOptions) -> tuple[Target, ...]:
    """The variants to emit, most demanding first."""
    wanted = options.variants or DEFAULT_TARGETS
    return tuple(target for name, target in TARGETS.items() if name in wanted)


def program_graphs(device: DeviceModel, options: CompileOptions) -> tuple[ProgramGraph, ...]:
    """The graphs of all programs; variants share them, and so do programs that differ in sampling only."""
    if not device.interface.is_decoder:
        return (program_graph(device, options, "run"),)
    made: dict[tuple[int, bool], ProgramGraph] = {}
    specs = program_specs(decoder_shape(device, options), options, device.interface.pruned)
    for spec in specs:
        if (spec.rows, spec.all_logits) not in made:
            graph = program_graph(device, options, spec.name, spec.rows, all_logits=spec.all_logits)
            made[spec.rows, spec.all_logits] = graph
    return tuple(made[spec.rows, spec.all_logits] for spec in specs)


def lower_model(
    device: DeviceModel,
    graphs: tuple[ProgramGraph, ...],
    options: CompileOptions,
    targets: Iterable[Target],
    only: str | None = None,
) -> dict[str, tuple[Program, ...]]:
    """The programs of every variant, by variant name; `only` the program of that name, if there is one."""
    if not device.interface.is_decoder:
        return {target.name: (_lower_graph(graphs[0], target),) for target in targets}
    decoder = decoder_shape(device, options)
    specs = program_specs(decoder, options, device.interface.pruned)
    return {
        target.name: tuple(
            lower_decoder(graph, spec, target, decoder)
            for graph, spec in zip(graphs, specs, strict=True)
            if only in (None, spec.name)
        )
        for target in targets
    }


def _lower_graph(program: ProgramGraph, target: Target) -> Program:
    """The one program, `run`, of a model without state."""
    graph = program.graph
    builder = Builder(graph, program.shapes, target)
    for value in graph.inputs:
        dtype = STORAGE[np.dtype(value.dtype).name]
        builder.tensor(value.name, dtype, builder.shape_of(value), Role.INPUT)
    for node in graph.nodes:
        builder.lower_node(node)
    names = tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs)
    return builder.program("run", *names)
