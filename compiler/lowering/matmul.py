"""Matrix products with constant weights: MatMulNBits and MatMul, alone and fused with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ..program import DType, Kernel, Role
from .builder import WEIGHT_STORAGE, Op, lower
from .int8_readers import Readers, int8_name, readers, write_int8
from .linear import gemm, gemv, n_partials
from .linear_epilogue import Argmax, Epilogue, Gated, Plain, Residual
from .linear_format import Linear
from .linear_weights import Part, dense_linear, q4_linear
from .quantize import quantize, quantized_tensor
from .sequence_state import ARGMAX_INDICES, ARGMAX_VALUES


@lower(
    "MatMulNBits",
    domain="com.microsoft",
    limits="bits 4, block size 16 to 256, constant B, packed zero points; no g_idx",
)
def matmul_nbits(op: Op) -> list[Kernel]:
    """y = x · dequantize(B)ᵀ + bias. com.microsoft version 1."""
    if op.value(4) is not None:
        raise op.error("has a group index (g_idx)", "quantise without activation reordering")
    return project(op, nbits_linear(op, [nbits_part(op, 1, 2, 3, 5)]))


@lower("MatMul", limits="B is a constant matrix")
def matmul(op: Op) -> list[Kernel]:
    """y = x · B. ONNX MatMul-13."""
    return project(op, matmul_linear(op, [1]))


@lower("MatMulBias", domain="webgpu_compile", limits="made by the compiler")
def matmul_bias(op: Op) -> list[Kernel]:
    """y = x · B + bias."""
    return project(op, matmul_linear(op, [1], bias=2))


@lower("GatedMatMulNBits", domain="webgpu_compile", limits="made by the compiler")
def gated_matmul_nbits(op: Op) -> list[Kernel]:
    """y = act(x · gateᵀ) · (x · upᵀ), both 4-bit."""
    parts = [nbits_part(op, 1, 2, 3, 4), nbits_part(op, 5, 6, 7, 8)]
    return project(op, nbits_linear(op, parts, gated=True))


@lower("GatedMatMul", domain="webgpu_compile", limits="made by the compiler")
def gated_matmul(op: Op) -> list[Kernel]:
    """y = act(x · gate) · (x · up), dense."""
    return project(op, matmul_linear(op, [1, 2], gated=True))


def project(op: Op, linear: Linear) -> list[Kernel]:
    """The kernels of y = linear(x): a GEMV for one row, else a GEMM; the LM head also finds its maximum."""
    rows = prod(op.out_shape()[:-1])
    decoder = op.builder.decoder
    x, kernels = activations(op, linear, rows)
    epilogue: Epilogue = Gated(op.attr("activation")) if linear.gated else Plain()
    if rows > 1:
        y = op.write().name
        return [
            *kernels,
            *gemm(
                linear,
                x,
                y,
                rows,
                nodes=op.nodes,
                epilogue=epilogue,
                sequence=op.sequence,
                few_rows=op.builder.few_rows,
            ),
        ]
    nodes = op.nodes
    if (fused := residual_norm(op, linear)) is not None:
        y, epilogue, nodes = fused
    elif linear.gated and _writes_int8(op, linear):
        y, epilogue = write_int8(op, 0, 1, linear.chunk).name, Gated(op.attr("activation"), y_int8=True)
    else:
        y = op.write().name
        if decoder is not None and y == decoder.logits and not linear.gated:
            n = n_partials(linear, shapes=op.builder.target.shapes)
            op.builder.tensor(ARGMAX_VALUES, DType.F32, (n,), Role.ACTIVATION)
            op.builder.tensor(ARGMAX_INDICES, DType.U32, (n,), Role.ACTIVATION)
            epilogue = Argmax(ARGMAX_VALUES, ARGMAX_INDICES)
    epsilon = op.builder.deferred_norms.get(x)
    return [
        *kernels,
        *gemv(
            linear,
            x,
            y,
            nodes=nodes,
            epilogue=epilogue,
            shapes=op.builder.target.shapes,
            sequence=op.sequence,
            x_epsilon=epsilon,
        ),
    ]


def residual_norm(op: Op, linear: Linear) -> tuple[str, Residual, tuple[str, ...]] | None:
    """y = linear(x); sum = y + skip; RMSNorm(sum)  =>  one GEMV, where only int8 layers read the norm.

    Returns what the GEMV writes, its epilogue and the nodes that it implements.
    """
    builder, value = op.builder, op.node.outputs[0]
    if linear.gated or len(value.outputs) != 1 or value.name in builder.outputs:
        return None
    norm = Op(value.outputs[0], builder)
    if norm.node.op != "SkipSimplifiedLayerNormalization" or norm.has_output(1) or norm.has_output(2):
        return None
    inputs = [v for v in norm.node.inputs[:2] if v is not value]
    if len(inputs) != 1 or norm.value(3) is not None or not _writes_int8(norm, linear):
        return None
    residual = builder.aliases.get(inputs[0].name, inputs[0].name)
    if residual not in builder.tensors:
        return None  # computed later
    weight = norm.read(2)
    y = write_int8(norm, 0, 1, linear.chunk, squares=True)
    builder.deferred_norms[y.name] = float(norm.attr("epsilon", 1e-5))
    builder.lowered.add(norm.name)
    sum_out = norm.write(3).name if norm.has_output(3) else None
    return y.name, Residual(residual, weight.name, weight.dtype, sum_out), (*op.nodes, *norm.nodes)


def _writes_int8(op: Op, linear: Linear) -> bool:
    """Whether a GEMV of `linear` may write output 0 of `op` as int8, and only so."""
    if linear.activation != "int8" or len(linear.segments) != 1 or linear.n % linear.chunk:
        return False
    return readers(op.builder, op.node.outputs[0]) == Readers(linear.chunk, others=False)


def activations(op: Op, linear: Linear, rows: int) -> tuple[str, list[Kernel]]:
    """The tensor that `linear` takes as x, and the kernels that make it: `quantize` where the activations
    are int8 and the producer of x did not write them so.

    One quantised tensor serves all layers that read the same x with the same block.
    """
    if linear.activation == "f32":
        return op.read(0).name, []
    value = op.value(0)
    assert value is not None
    name = int8_name(op.builder.aliases.get(value.name, value.name), linear.chunk)
    if name in op.builder.tensors:
        return name, []
    tensor = quantized_tensor(name, rows, linear.k, linear.chunk)
    op.builder.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.role)
    x = op.read(0).name
    return name, [quantize(x, name, rows, linear.k, linear.chunk, nodes=op.nodes, sequence=op.sequence)]


def nbits_linear(op: Op, parts: Sequence[Part], *, gated: bool = False) -> Linear:
    """The 4-bit `Linear` of a node with MatMulNBits' attributes."""
    bits, block_size = op.attr("bits", 4), op.attr("block_size")
    if bits != 4:
        raise op.error(f"has {bits}-bit weights", "quantise to 4 bits")
    if block_size not in (16, 32, 64, 128, 256):
        raise op.error(f"has block size {block_size}", "quantise with blocks of 16, 32, 64, 128 or 256")
    scales = op.value(2)
    assert isinstance(scales, gs.Constant)
    bias = op.value(4 if gated else 5) if op.node.op != "QkvAttention" else op.value(4)
    int8 = op.builder.int8_activations(op.attr("accuracy_level", 0))
    return q4_linear(
        op.builder,
        parts,
        k=op.attr("K"),
        block_size=block_size,
        scale_dtype=weight_dtype(scales),
        bias_dtype=weight_dtype(bias) if isinstance(bias, gs.Constant) else DType.F16,
        gated=gated,
        activation="int8" if int8 else "f32",
    )


def matmul_linear(op: Op, weights: Sequence[int], *, bias: int | None = None, gated: bool = False) -> Linear:
    """The dense `Linear` of constant [k, n] matrices at the given inputs."""
    parts: list[Part] = []
    matrices: list[gs.Constant] = []
    for index in weights:
        value = op.value(index)
        if not isinstance(value, gs.Constant) or len(value.shape) != 2:
            raise op.error("multiplies by a computed matrix", "only constant weight matrices are supported")
        bias_name = op.initializer(bias) if bias is not None else None
        matrices.append(value)
        parts.append(Part(int(value.shape[1]), op.initializer(index), bias=bias_name))
    first = matrices[0]
    bias_value = op.value(bias) if bias is not None else None
    return dense_linear(
        op.builder,
        parts,
        k=int(first.shape[0]),
        dtype=weight_dtype(first),
        bias_dtype=weight_dtype(bias_value) if bias_value is not None else DType.F16,
        gated=gated,
    )


def nbits_part(op: Op, weights: int, scales: int, zero_points: int, bias: int) -> Part:
    """The initializers of one 4-bit matrix, by the positions of its inputs."""
    zeros = op.value(zero_points)
    if zeros is not None and zeros.dtype != "uint8":
        raise op.error("has unpacked zero points", "quantise with packed uint8 zero points")
    return Part(
        n=op.attr("N"),
        weights=op.initializer(weights),
        scales=op.initializer(scales),
        zero_points=op.initializer(zero_points) if zeros is not None else None,
        bias=op.initializer(bias) if op.value(bias) is not None else None,
    )


def weight_dtype(constant: gs.Constant) -> DType:
    """The element type of a weight on the GPU."""
    return WEIGHT_STORAGE[np.dtype(constant.dtype).name]
