"""RMSNorm, alone and with the residual addition in front of it."""

from __future__ import annotations

from math import prod

from ..program import Kernel
from .builder import Op, lower, reads, writes
from .int8_readers import readers, write_int8
from .quantize import quantized_scales, quantized_squares

ROW_THREADS = 256


@lower("SimplifiedLayerNormalization", "RMSNormalization", limits="normalises the last axis")
def rms_norm(op: Op) -> list[Kernel]:
    """y = x / sqrt(mean(x²) + epsilon) · weight, one workgroup per row. ONNX RMSNormalization-23."""
    axis = op.attr("axis", -1)
    rank = len(op.shape(0))
    if axis not in (-1, rank - 1):
        raise op.error(f"normalises from axis {axis}", "only the last axis is supported, reshape before it")
    return [_norm(op, weight=1, skip=None)]


@lower("SkipSimplifiedLayerNormalization", domain="com.microsoft", limits="outputs 1 and 2 must be unused")
def skip_rms_norm(op: Op) -> list[Kernel]:
    """sum = x + skip (+ bias); y = RMSNorm(sum). Output 3 is the sum. com.microsoft version 1."""
    if op.has_output(1) or op.has_output(2):
        raise op.error("has its mean or variance output in use", "export it for inference")
    return [_norm(op, weight=2, skip=1)]


def _norm(op: Op, weight: int, skip: int | None) -> Kernel:
    *outer, size = op.shape(0)
    rows = prod(outer)
    wanted = readers(op.builder, op.node.outputs[0])
    int8 = wanted.block and size % wanted.block == 0
    vector = 4 if size % 4 == 0 else 1
    unit = 8 if int8 else vector  # values that a thread takes at a time
    threads = min(ROW_THREADS, max(32, 1 << (-(-size // unit) - 1).bit_length()))
    bindings = reads(x=op.read(0), weight=op.read(weight))
    if skip is not None:
        bindings += reads(skip=op.read(skip))
        if op.value(3) is not None:
            bindings += reads(bias=op.read(3))
    if int8:
        bindings += writes(y_int8=write_int8(op, 0, rows, wanted.block))
    if not int8 or wanted.others:
        bindings += writes(y=op.write(0))
    if op.has_output(3):
        bindings += writes(sum_out=op.write(3))
    return op.kernel(
        "rms_norm.wgsl.j2",
        name="skip_rms_norm" if skip is not None else "rms_norm",
        grid=rows,
        workgroup=threads,
        bindings=bindings,
        constants={
            "rows": rows,
            "size": size,
            "vector": vector,
            "unit": unit,
            "sum_type": "f32",
            "y_block": wanted.block,
            "y_scales": quantized_scales(size, wanted.block) if int8 else 0,
            "y_stride": quantized_squares(size, wanted.block) if int8 else 0,
            "epsilon": float(op.attr("epsilon", 1e-5)),
            "weight_dtype": str(op.read(weight).dtype),
            "bias_dtype": str(op.read(3).dtype) if skip is not None and op.value(3) is not None else "",
        },
        work=rows * size * 4,
        workgroup_nbytes=8 * threads + 4,
    )
