"""Embedding look-ups: rows of a table by token id, plain or 4-bit."""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from ..program import Binding, Kernel, Tensor
from ..sequence import SEQUENCE, TOKENS
from .builder import WEIGHT_STORAGE, Op, lower, reads, split_rows, writes
from .matmul import matmul_linear

THREADS = 256
MAX_TABLES = 4
"""Segments of one table bound by one dispatch; with scales, ids, sequence and output that makes 8."""


@lower("Gather", limits="axis 0 of a constant table, or of a computed f32 table")
def gather(op: Op) -> list[Kernel]:
    """y[i] = table[ids[i]] for whole rows; negative ids count from the end. ONNX Gather-13."""
    shape = op.shape(0)
    if op.attr("axis", 0) != 0:
        raise op.error(
            f"gathers along axis {op.attr('axis')}", "only axis 0 is supported, transpose the table"
        )
    n_rows, width = shape[0], prod(shape[1:])
    table = op.value(0)
    if isinstance(table, gs.Constant):
        dtype = WEIGHT_STORAGE[table.dtype.name if hasattr(table.dtype, "name") else table.dtype.__name__]
        ranges = split_rows(n_rows, width * dtype.nbytes)
        parts = [
            op.builder.weight(table, rows=part if len(ranges) > 1 else None, shape=(n_rows, width))
            if len(ranges) > 1
            else op.read(0)
            for part in ranges
        ]
    else:
        dtype, ranges, parts = op.read(0).dtype, [(0, n_rows)], [op.read(0)]
    return _kernels(op, 1, str(dtype), n_rows, width, ranges, parts, [], {})


@lower(
    "GatherBlockQuantized",
    domain="com.microsoft",
    limits="bits 4, gather axis 0, quantize axis last, no g_idx",
)
@lower("GatherPaddedRows", domain="webgpu_compile", limits="made by the compiler")
def gather_block_quantized(op: Op) -> list[Kernel]:
    """y[i] = (table[ids[i]] - zero_point) · scale, 4-bit along the last axis. com.microsoft version 1.

    A table tied to the LM head is the same weight tensor: bytes are shared, not copied.
    """
    if op.attr("bits", 4) != 4 or op.attr("gather_axis", 0) != 0:
        raise op.error(
            "is not a 4-bit gather along axis 0", "quantise the embedding to 4 bits along its rows"
        )
    table, scales = op.value(0), op.value(2)
    if not isinstance(table, gs.Constant) or not isinstance(scales, gs.Constant):
        raise op.error("has a computed table", "make the table an initializer")
    width = op.out_shape()[-1]
    n_rows = op.shape(0)[0]
    block = op.attr("block_size", 128)
    row_nbytes = prod(op.shape(0)[1:])
    ranges = split_rows(n_rows, row_nbytes)
    parts = [op.builder.weight(table, rows=part) if len(ranges) > 1 else op.read(0) for part in ranges]
    scale = op.read(2)
    extra = reads(scales=scale)
    if op.value(3) is not None:
        extra += reads(zero_points=op.read(3))
    constants = {
        "block_size": block,
        "n_blocks": prod(scale.shape) // n_rows,
        "scale_dtype": str(scale.dtype),
        "row_nbytes": row_nbytes,
    }
    return _kernels(op, 1, "q4", n_rows, width, ranges, parts, extra, constants)


@lower("GatherColumns", domain="webgpu_compile", limits="made by the compiler")
def gather_columns(op: Op) -> list[Kernel]:
    """y[i] = table[:, ids[i]]: the embedding of a model whose LM head is a tied MatMul.

    The LM head's weights lie transposed, so a column of the model's table is a row of that tensor.
    """
    width, n_rows = op.shape(0)
    linear = matmul_linear(op, [0])
    ranges = [(segment.begin, segment.end) for segment in linear.segments]
    parts = [op.builder.tensors[segment.weights] for segment in linear.segments]
    return _kernels(op, 1, linear.format, n_rows, width, ranges, parts, [], {}, stride=linear.padded_k)


def _kernels(
    op: Op,
    ids_input: int,
    table_dtype: str,
    n_rows: int,
    width: int,
    ranges: list[tuple[int, int]],
    parts: list[Tensor],
    extra: list[Binding],
    constants: dict[str, int | str],
    stride: int | None = None,
) -> list[Kernel]:
    """One dispatch per `MAX_TABLES` segments; each writes the rows whose ids lie in its segments."""
    y = op.write()
    n_ids = prod(op.shape(ids_input))
    decoder = op.builder.decoder
    value = op.value(ids_input)
    by_position = decoder is not None and value is not None and value.name == decoder.token_input
    if by_position:
        ids = reads(ids=op.builder.tensors[TOKENS], sequence=op.builder.tensors[SEQUENCE])
    else:
        ids = reads(ids=op.read(ids_input))
    kernels = []
    for start in range(0, len(parts), MAX_TABLES):
        segment = list(zip(ranges, parts, strict=True))[start : start + MAX_TABLES]
        tables = [reads(**{f"table{i}": part})[0] for i, (_, part) in enumerate(segment)]
        kernels.append(
            op.kernel(
                "gather.wgsl.j2",
                name="embed" if by_position else "gather",
                grid=n_ids,
                workgroup=THREADS,
                bindings=[*tables, *extra, *ids, *writes(y=y)],
                constants={
                    **constants,
                    "table_dtype": table_dtype,
                    "n_rows": n_rows,
                    "width": width,
                    "stride": stride or width,
                    "n_ids": n_ids,
                    "n_tables": len(segment),
                    "bounds": (*(str(first) for (first, _), _ in segment), str(segment[-1][0][1])),
                    "partial": len(parts) > MAX_TABLES,
                    "by_position": by_position,
                },
                work=n_ids * width,
            )
        )
    return kernels
