"""The programs of a language model: one token, chunks of a prompt, chunks with all their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from ..passes.prune import select_last_token
from ..passes.shapes import concrete_shapes
from ..program import Program, Role
from ..target import Target
from .builder import Builder, DecoderShape
from .initializers import Initializers
from .sequence_state import advance, begin, sample

LOGITS_NBYTES = 32 << 20
"""Most memory that the all-logits program may use for its output; it decides that program's chunk."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """Which program to make: `rows` positions, with all their logits or the last position's only."""

    name: str
    rows: int
    all_logits: bool


def program_specs(decoder: DecoderShape, chunks: Sequence[int], pruned: bool) -> list[ProgramSpec]:
    """`decode`, a `prefill_N` per chunk size, and `logits_N` unless the exporter pruned the LM head."""
    specs = [ProgramSpec("decode", 1, False)]
    sizes = sorted(n for n in chunks if n > 1)
    specs += [ProgramSpec(f"prefill_{n}", n, False) for n in sizes]
    if not pruned:
        fitting = [n for n in sizes if n * decoder.vocab_size * 4 <= LOGITS_NBYTES] or sizes[:1]
        specs += [ProgramSpec(f"logits_{n}", n, True) for n in fitting[-1:]]
    return specs


def lower_decoder(
    graph: gs.Graph, spec: ProgramSpec, target: Target, initializers: Initializers, decoder: DecoderShape
) -> Program:
    """Lower the device graph for one program.

    In the GPU-driven form the program keeps the sequence itself: chunks open with `begin`; `sample` or
    `advance` ends every program. In the host-driven form the caller writes the words between steps.
    """
    one_position = spec.rows == 1 or not spec.all_logits
    if spec.rows > 1 and one_position:
        graph = select_last_token(graph)
    shapes = concrete_shapes(graph, {"batch_size": 1, "sequence_length": spec.rows})
    builder = Builder(graph, shapes, target, initializers, decoder, spec.rows)
    gpu_driven = decoder.driven_by == "gpu"
    if gpu_driven and spec.rows > 1:
        builder.add(begin(builder))
    for past, present in decoder.caches:
        builder.aliases[present] = past
    for node in _live_nodes(graph, decoder):
        builder.lower_node(node)
    if one_position:
        builder.add(sample(builder))
    elif gpu_driven:
        builder.add(advance(builder))
    assert builder.tensors[decoder.logits].role is Role.OUTPUT
    return builder.program(spec.name, inputs=(), outputs=(decoder.logits,))


def _live_nodes(graph: gs.Graph, decoder: DecoderShape) -> list[gs.Node]:
    """Nodes in order, without those that only compute sequence lengths: kernels read the GPU words."""
    lengths = {"total_sequence_length"}
    live = []
    for node in graph.nodes:
        inputs = [value.name for value in node.inputs if value.name and not isinstance(value, gs.Constant)]
        if inputs and all(name in lengths for name in inputs):
            lengths.update(value.name for value in node.outputs)
        else:
            live.append(node)
    return live
