"""The kernels that move the sequence along: no token, length or decision leaves the GPU.

`begin` opens a chunk of a prompt, `sample` (sampling.py) ends a step with a new token, `advance` ends one
without. `LastToken` is the row of the last real position of a chunk, `ArgMaxParts` what `sample` reads.
"""

from __future__ import annotations

from ..program import DType, Kernel, Role, Tensor
from ..sequence import SEQUENCE
from .builder import Builder, Op, lower, reads, writes

ARGMAX_THREADS = 256
ARGMAX_SPAN = 4096
"""Logits under one partial maximum."""


def begin(builder: Builder) -> Kernel:
    """Set length, total_length and call_length for the next chunk of the known tokens."""
    return _state_kernel("begin", "sequence_begin.wgsl.j2", builder, {"rows": builder.rows})


def advance(builder: Builder) -> Kernel:
    """The chunk's positions are in the cache now; no token is sampled."""
    return _state_kernel("advance", "sequence_advance.wgsl.j2", builder, {})


@lower("LastToken", domain="webgpu_compile", dtypes="float32, float16", limits="made by the compiler")
def last_token(op: Op) -> list[Kernel]:
    """y[0] = x[length - 1]: the last real row of the chunk."""
    width = op.shape(0)[-1]
    return [
        op.kernel(
            "last_token.wgsl.j2",
            grid=-(-width // 256),
            workgroup=256,
            bindings=[
                *reads(x=op.read(0), sequence=op.builder.tensors[SEQUENCE]),
                *writes(y=op.write()),
            ],
            constants={"width": width},
        )
    ]


@lower("ArgMaxParts", domain="webgpu_compile", limits="made by the compiler")
def argmax_parts(op: Op) -> list[Kernel]:
    """The greatest of each part of a row of logits, and its token."""
    logits = op.read(0)
    size = logits.shape[-1]
    groups = -(-size // ARGMAX_SPAN)
    values, indices = (output.name for output in op.node.outputs)
    parts = {
        "partial_values": op.builder.tensor(values, DType.F32, (groups,), Role.ACTIVATION),
        "partial_indices": op.builder.tensor(indices, DType.U32, (groups,), Role.ACTIVATION),
    }
    return [
        op.kernel(
            "argmax.wgsl.j2",
            grid=groups,
            workgroup=ARGMAX_THREADS,
            bindings=[*reads(logits=logits), *writes(**parts)],
            constants={"size": size, "span": ARGMAX_SPAN},
            workgroup_nbytes=8 * ARGMAX_THREADS,
            work=size,
        )
    ]


def _state_kernel(name: str, template: str, builder: Builder, constants: dict[str, int]) -> Kernel:
    return Kernel(
        name=name,
        template=template,
        workgroup=(1, 1, 1),
        grid=(1, 1, 1),
        bindings=tuple(writes(sequence=builder.tensors[SEQUENCE])),
        constants=tuple(sorted(constants.items())),
        nodes=(),
    )


def logits_of(builder: Builder) -> Tensor:
    """The row of logits that a token is sampled from, f32 [1, 1, vocab]."""
    assert builder.decoder is not None
    return builder.tensors[builder.aliases.get(builder.decoder.logits, builder.decoder.logits)]
