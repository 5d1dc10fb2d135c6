"""RMSNorm, alone and with the residual addition in front of it."""

from __future__ import annotations

from math import prod

from ..passes.function_bodies import INT8_BLOCK
from ..program import Access, Binding, DType, Kernel, Tensor
from .builder import Op, lower, reads, writes
from .quantize import quantized_scales, quantized_squares, write_int8

ROW_THREADS = 256
CPU_ROW_THREADS = 16  # where a CPU plays the GPU and waits for each at every barrier


@lower("SimplifiedLayerNormalization", "RMSNormalization", limits="normalises the last axis")
def rms_norm(op: Op) -> list[Kernel]:
    """y = x / sqrt(mean(x²) + epsilon) · weight, one workgroup per row. ONNX RMSNormalization-23."""
    _check_axis(op)
    return [_norm(op, weight=1, y=0)]


@lower("QuantizedNorm", domain="webgpu_compile", limits="made by the compiler")
def quantized_norm(op: Op) -> list[Kernel]:
    """An RMSNorm that writes int8, and floats where something reads them."""
    _check_axis(op)
    return [_norm(op, weight=1, y=1, y_int8=True)]


@lower("SkipSimplifiedLayerNormalization", domain="com.microsoft", limits="outputs 1 and 2 must be unused")
def skip_rms_norm(op: Op) -> list[Kernel]:
    """sum = x + skip (+ bias); y = RMSNorm(sum). Output 3 is the sum. com.microsoft version 1."""
    if op.has_output(1) or op.has_output(2):
        raise op.error("has its mean or variance output in use", "export it for inference")
    return [_norm(op, weight=2, skip=1, y=0, added=3)]


@lower("QuantizedSkipNorm", domain="webgpu_compile", limits="made by the compiler")
def quantized_skip_norm(op: Op) -> list[Kernel]:
    """The RMSNorm of a sum, written as int8, and as floats where something reads them."""
    return [_norm(op, weight=2, skip=1, y=1, added=2, y_int8=True)]


def _check_axis(op: Op) -> None:
    axis, rank = op.attr("axis", -1), len(op.shape(0))
    if axis not in (-1, rank - 1):
        raise op.error(f"normalises from axis {axis}", "only the last axis is supported, reshape before it")


def _norm(
    op: Op, *, weight: int, y: int, skip: int | None = None, added: int | None = None, y_int8: bool = False
) -> Kernel:
    """Inputs and outputs by position; with `y_int8` output 0 is int8, and `y` is there if it is read.

    The sum is written also where nobody reads it, after the last layer: a shader less.
    """
    sum_out = None
    if added is not None:
        unread = not op.has_output(added)
        sum_out = op.scratch("sum", DType.F32, op.shape(0)) if unread else op.write(added)
    return norm_kernel(
        op,
        op.read(0),
        op.read(weight),
        skip=None if skip is None else op.read(skip),
        bias=op.read(3) if skip is not None and op.value(3) is not None else None,
        y_int8=write_int8(op) if y_int8 else None,
        y=op.write(y) if not y_int8 or op.has_output(y) else None,
        sum_out=sum_out,
    )


def norm_kernel(
    op: Op,
    x: Tensor,
    weight: Tensor,
    *,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    y: Tensor | None = None,
    y_int8: str | None = None,
    sum_out: Tensor | None = None,
) -> Kernel:
    """The RMSNorm of x, or of x + skip (+ bias), which `sum_out` gets; as floats, as int8, or as both."""
    *outer, size = x.shape
    rows = prod(outer)
    block = op.attr(INT8_BLOCK, 0)
    vector = 4 if size % 4 == 0 else 1
    unit = 8 if y_int8 else vector  # values that a thread takes at a time
    threads = min(ROW_THREADS, max(32, 1 << (-(-size // unit) - 1).bit_length()))
    if op.builder.target.cpu:
        threads = CPU_ROW_THREADS
    bindings = reads(x=x, weight=weight)
    if y_int8:  # what norms with and without a residual have in common comes first
        bindings += [Binding("y_int8", y_int8, Access.READ_WRITE)]
    if y is not None:
        bindings += writes(y=y)
    if skip is not None:
        bindings += reads(skip=skip)
        if bias is not None:
            bindings += reads(bias=bias)
    if sum_out is not None:
        bindings += writes(sum_out=sum_out)
    return op.kernel(
        "rms_norm.wgsl.j2",
        name="skip_rms_norm" if skip is not None else "rms_norm",
        grid=rows,
        workgroup=threads,
        bindings=bindings,
        constants={
            "size": size,
            "vector": vector,
            "unit": unit,
            "sum_type": "f32",
            "y_block": block,
            "y_scales": quantized_scales(size, block) if y_int8 else 0,
            "y_stride": quantized_squares(size, block) if y_int8 else 0,
            "epsilon": float(op.attr("epsilon", 1e-5)),
            "weight_dtype": str(weight.dtype),
            "bias_dtype": str(bias.dtype) if bias is not None else "",
        },
        work=rows * size * 4,
        workgroup_nbytes=8 * threads + 4,
    )
