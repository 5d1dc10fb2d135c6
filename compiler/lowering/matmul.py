"""Matrix products with constant weights: MatMulNBits and MatMul, alone and fused with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import producer
from ..passes.function_bodies import INT8_BLOCK
from ..passes.functions import int8_block
from ..passes.fuse_residual_norm import deferred_epsilon
from ..program import DType, Kernel, Role
from . import linear_cpu
from .builder import WEIGHT_STORAGE, Op, lower
from .linear import gemm, gemv, n_partials
from .linear_epilogue import Argmax, Epilogue, Gated, Residual
from .linear_format import Linear
from .linear_weights import Part, dense_linear, q4_linear
from .norm import norm_kernel
from .quantize import quantize, write_int8

OUTPUT_BLOCK = 16
"""Values per scale where the product of one row writes int8. A workgroup writes whole blocks: of 32 a row of
2,048 would keep half of a big GPU's cores busy."""


@lower(
    "MatMulNBits",
    domain="com.microsoft",
    limits="bits 4, block size 16 to 256, constant B, packed zero points; no g_idx",
)
def matmul_nbits(op: Op) -> list[Kernel]:
    """y = x · dequantize(B)ᵀ + bias. com.microsoft version 1."""
    if op.value(4) is not None:
        raise op.error("has a group index (g_idx)", "quantise without activation reordering")
    return project(op, nbits_linear(op, (1, 2, 3, 5)), op.write().name)


@lower("MatMul", limits="B is a constant matrix")
def matmul(op: Op) -> list[Kernel]:
    """y = x · B. ONNX MatMul-13."""
    return project(op, matmul_linear(op, [1]), op.write().name)


@lower("MatMulBias", domain="webgpu_compile", limits="made by the compiler")
def matmul_bias(op: Op) -> list[Kernel]:
    """y = x · B + bias."""
    return project(op, matmul_linear(op, [1], bias=2), op.write().name)


@lower("GatedMatMulNBits", domain="webgpu_compile", limits="made by the compiler")
def gated_matmul_nbits(op: Op) -> list[Kernel]:
    """y = act(x · gateᵀ) · (x · upᵀ), both 4-bit; y is int8 where one row of it is read so."""
    linear = nbits_linear(op, (1, 2, 3, 4), (5, 6, 7, 8))
    act, int8 = op.attr("activation"), op.attr(INT8_BLOCK, 0)
    if int8 and op.builder.target.cpu:
        y = op.scratch("y", DType.F32, (1, linear.n)).name
        to_int8 = quantize(y, write_int8(op), 1, linear.n, int8, nodes=op.nodes, sequence=op.sequence)
        return [*project(op, linear, y, Gated(act)), to_int8]
    if not int8:
        return project(op, linear, op.write().name, Gated(act))
    block = min(OUTPUT_BLOCK, int8)
    return project(op, linear, write_int8(op, block), Gated(act, block))


@lower("GatedMatMul", domain="webgpu_compile", limits="made by the compiler")
def gated_matmul(op: Op) -> list[Kernel]:
    """y = act(x · gate) · (x · up), dense."""
    return project(op, matmul_linear(op, [1, 2], gated=True), op.write().name, Gated(op.attr("activation")))


@lower("ResidualNormMatMulNBits", domain="webgpu_compile", limits="made by the compiler")
def residual_norm_matmul_nbits(op: Op) -> list[Kernel]:
    """sum = residual + x · Wᵀ (+ bias); y = sum · norm_weight as int8, without the RMSNorm's factor.

    The last layer's sum is written too, though nobody reads it: two kilobytes, for one shader less.
    """
    linear, residual, weight = nbits_linear(op, (1, 2, 3, 4)), op.read(5), op.read(6)
    name = op.node.outputs[0].name
    if op.has_output(1):
        sum_out = op.write(1)
    else:
        sum_out = op.builder.tensor(f"{name}/sum", DType.F32, (linear.n,), Role.ACTIVATION)
    if op.builder.target.cpu:  # a thread knows four outputs, too few for a block of int8: the norm is whole
        product = op.scratch("y", DType.F32, (1, linear.n))
        norm = norm_kernel(op, product, weight, skip=residual, y_int8=write_int8(op), sum_out=sum_out)
        return [*project(op, linear, product.name), norm]
    block = min(OUTPUT_BLOCK, op.attr(INT8_BLOCK))
    epilogue = Residual(residual.name, weight.name, weight.dtype, block, sum_out.name)
    return project(op, linear, write_int8(op, block, squares=True), epilogue)


@lower("ArgMaxMatMul", domain="webgpu_compile", limits="made by the compiler")
def argmax_matmul(op: Op) -> list[Kernel]:
    """The LM head: logits, and the greatest of each workgroup with its token."""
    linear = projection(op)
    values, indices = (output.name for output in op.node.outputs[1:])
    target = op.builder.target
    n = linear_cpu.n_partials(linear) if target.cpu else n_partials(linear, shapes=target.shapes)
    op.builder.tensor(values, DType.F32, (n,), Role.ACTIVATION)
    op.builder.tensor(indices, DType.U32, (n,), Role.ACTIVATION)
    return project(op, linear, op.write().name, Argmax(values, indices))


def project(op: Op, linear: Linear, y: str, epilogue: Epilogue | None = None) -> list[Kernel]:
    """The kernels of y = linear(x), x being input 0: a GEMV for one row, else a GEMM.

    Where a CPU plays the GPU, one kernel for both.
    """
    x, rows = op.read(0).name, prod(op.shape(0)[:-1])
    nodes, sequence = op.nodes, op.sequence
    if op.builder.target.cpu:
        return linear_cpu.product(linear, x, y, rows, nodes=nodes, epilogue=epilogue, sequence=sequence)
    if rows > 1:
        return gemm(linear, x, y, rows, nodes=nodes, epilogue=epilogue, sequence=sequence)
    shapes, epsilon = op.builder.target.shapes, deferred_epsilon(op.node.inputs[0])
    return gemv(
        linear, x, y, nodes=nodes, epilogue=epilogue, shapes=shapes, sequence=sequence, x_epsilon=epsilon
    )


def projection(op: Op) -> Linear:
    """The `Linear` of a call with a `projection`: weight, scales, zero points and bias are inputs 1 to 4."""
    if op.attr("projection") == "nbits":
        return nbits_linear(op, (1, 2, 3, 4))
    return matmul_linear(op, [1], bias=4 if op.attr("projection") == "dense_bias" else None)


def nbits_linear(op: Op, *matrices: tuple[int, int, int, int]) -> Linear:
    """The 4-bit `Linear` of a node with MatMulNBits' attributes; of two matrices a gated one.

    A matrix is the positions of its weights, scales, zero points and bias. It multiplies in integers where
    the graph has x in int8.
    """
    bits, block_size = op.attr("bits", 4), op.attr("block_size")
    if bits != 4:
        raise op.error(f"has {bits}-bit weights", "quantise to 4 bits")
    if block_size not in (16, 32, 64, 128, 256):
        raise op.error(f"has block size {block_size}", "quantise with blocks of 16, 32, 64, 128 or 256")
    _, scales, _, bias = (op.value(index) for index in matrices[0])
    assert isinstance(scales, gs.Constant)
    linear = q4_linear(
        op.builder,
        [nbits_part(op, *positions) for positions in matrices],
        k=op.attr("K"),
        block_size=block_size,
        scale_dtype=weight_dtype(scales),
        bias_dtype=weight_dtype(bias) if isinstance(bias, gs.Constant) else DType.F16,
        gated=len(matrices) == 2,
        activation="int8" if int8_block(op.value(0)) else "f32",
    )
    return replace(linear, x_block=_x_block(op))


def _x_block(op: Op) -> int:
    """Values per scale of input 0 in int8; 0 where it is not."""
    block, x = int8_block(op.value(0)), op.value(0)
    writer = producer(x, "ResidualNormMatMulNBits", "GatedMatMulNBits") if x is not None else None
    return min(OUTPUT_BLOCK, block) if writer is not None and not op.builder.target.cpu else block


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
