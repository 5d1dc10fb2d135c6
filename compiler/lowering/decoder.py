"""The programs of a language model: one token, chunks of a prompt, chunks with all their logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..options import CompileOptions
from ..passes.front import DeviceModel
from ..passes.program import ProgramGraph
from ..program import DType, Program
from ..target import SPEC_LIMITS, Target
from .builder import Builder, DecoderShape
from .sampling import greedy, sample
from .sequence_state import advance, begin

DEFAULT_CAPACITY = 4096
"""Positions of the KV cache where the user does not say: models promise up to 131,072, memory does not."""

LOGITS_NBYTES = 32 << 20
"""Most memory that the all-logits programs may use for their output; it decides their largest chunk."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """Which program to make: `rows` positions, with all their logits or the last position's only.

    `draws`: the next token may be drawn at random; otherwise it is the arg-max.
    """

    name: str
    rows: int
    all_logits: bool = False
    draws: bool = False


def decoder_shape(device: DeviceModel, options: CompileOptions) -> DecoderShape:
    """What is fixed for all programs of a decoder.

    Raises:
        CompileError: the capacity is over the model's context, or a cache over the binding limit.
    """
    interface, config = device.interface, device.config
    assert interface.tokens is not None
    assert interface.logits is not None
    context = config.context_length
    capacity = options.max_length or min(context or DEFAULT_CAPACITY, DEFAULT_CAPACITY)
    if context is not None and capacity > context:
        raise CompileError(
            f"--max-length {capacity}",
            f"the model's context has {context} positions",
            f"give at most {context}",
        )
    for cache in interface.caches:
        position = (
            cache.kv_heads * cache.head_size * DType.F32.nbytes // (1 if cache.dtype == "float32" else 2)
        )
        most = SPEC_LIMITS["max-storage-buffer-binding-size"] // position
        if capacity > most:
            raise CompileError(
                f"--max-length {capacity}",
                f"cache {cache.past} would be {capacity * position >> 20} MiB, "
                "over WebGPU's 128 MiB for a binding",
                f"give at most {most}",
            )
    vocab_size = next(port.shape[-1] for port in device.graph.outputs if port.name == interface.logits)
    return DecoderShape(
        capacity=capacity,
        vocab_size=int(vocab_size),
        token_input=interface.tokens,
        caches=tuple((cache.past, cache.present) for cache in interface.caches),
        logits=interface.logits,
        driven_by=options.sequence_length,
        indirect_attention=options.attention_dispatch == "indirect",
        most_rows=min(max(options.prefill_chunks), capacity),
    )


def program_specs(decoder: DecoderShape, options: CompileOptions, pruned: bool) -> list[ProgramSpec]:
    """`decode`, `decode_sampled`, a `prefill_N` per chunk size; unless the LM head is pruned `logits_N`."""
    specs = [ProgramSpec("decode", 1), ProgramSpec("decode_sampled", 1, draws=True)]
    sizes = sorted({min(n, decoder.capacity) for n in options.prefill_chunks} - {1})
    specs += [ProgramSpec(f"prefill_{n}", n, draws=True) for n in sizes]
    if not pruned:
        fitting = [n for n in sizes if n * decoder.vocab_size * 4 <= LOGITS_NBYTES] or sizes[:1]
        # The smallest and the largest chunk: short inputs, and long texts to be scored.
        specs += [ProgramSpec(f"logits_{n}", n, all_logits=True) for n in sorted({*sizes[:1], *fitting[-1:]})]
    return specs


def lower_decoder(program: ProgramGraph, spec: ProgramSpec, target: Target, decoder: DecoderShape) -> Program:
    """Lower the graph of one program.

    In the GPU-driven form the program keeps the sequence itself: chunks open with `begin`; `sample`
    or `advance` ends every program. In the host-driven form the caller writes the words between steps.
    """
    builder = Builder(program.graph, program.shapes, target, decoder, spec.rows)
    gpu_driven = decoder.driven_by == "gpu"
    if gpu_driven and spec.rows > 1:
        builder.add(begin(builder))
    for past, present in decoder.caches:
        builder.aliases[present] = past
    for node in kernel_nodes(program.graph):
        builder.lower_node(node)
    if not spec.all_logits:
        builder.add(*(sample(builder) if spec.draws else [greedy(builder)]))
    elif gpu_driven:
        builder.add(advance(builder))
    return builder.program(spec.name, inputs=(), outputs=(decoder.logits,))


def kernel_nodes(graph: gs.Graph) -> list[gs.Node]:
    """Nodes that become kernels: not those that only compute sequence lengths, or choose between tables.

    Attention reads the lengths from the sequence words and makes LongRoPE's choice itself.
    """
    lengths = {"total_sequence_length"}
    live = []
    for node in graph.nodes:
        computed = [v.name for v in node.inputs if v.name and not isinstance(v, gs.Constant)]
        if computed and all(name in lengths for name in computed):
            lengths.update(value.name for value in node.outputs)
        else:
            live.append(node)
    return live
