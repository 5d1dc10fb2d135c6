"""Lowering: one function per operator turns a node of the device graph into kernels.

Importing this package registers every lowering; `builder.OPS` is the table.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..options import CompileOptions
from ..passes.front import DeviceModel
from ..passes.shapes import concrete_shapes
from ..program import Program, Role
from ..target import DEFAULT_TARGETS, TARGETS, Target
from . import elementwise, gather, gqa, matmul, norm, sequence_state, views
from .builder import STORAGE, Builder, record_of
from .decoder import decoder_shape, lower_decoder, program_specs

__all__ = ["decoder_shape", "lower_model", "record_of", "variants_of"]

_REGISTERED = (elementwise, gather, gqa, matmul, norm, sequence_state, views)


def variants_of(options: CompileOptions) -> tuple[Target, ...]:
    """The variants to emit, most demanding first."""
    wanted = options.variants or DEFAULT_TARGETS
    return tuple(target for name, target in TARGETS.items() if name in wanted)


def lower_model(
    device: DeviceModel, options: CompileOptions, targets: Iterable[Target], only: str | None = None
) -> dict[str, tuple[Program, ...]]:
    """The programs of every variant, by variant name; `only` the program of that name, if there is one."""
    if not device.interface.is_decoder:
        return {target.name: (_lower_graph(device, target, options),) for target in targets}
    decoder = decoder_shape(device, options)
    specs = program_specs(decoder, options, device.interface.pruned)
    specs = [spec for spec in specs if only in (None, spec.name)]
    return {
        target.name: tuple(lower_decoder(device.graph, spec, target, decoder, options) for spec in specs)
        for target in targets
    }


def _lower_graph(device: DeviceModel, target: Target, options: CompileOptions) -> Program:
    """The one program, `run`, of a model without state."""
    import numpy as np

    graph = device.graph
    builder = Builder(graph, concrete_shapes(graph, {}), target, activations=options.activations)
    for value in graph.inputs:
        dtype = STORAGE[np.dtype(value.dtype).name]
        builder.tensor(value.name, dtype, builder.shape_of(value), Role.INPUT)
    for node in graph.nodes:
        builder.lower_node(node)
    names = tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs)
    return builder.program("run", *names)
