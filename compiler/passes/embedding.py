"""The tied embedding: one matrix, which the LM head reads in its own layout."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import is_constant, nodes, operand, producer, small_value, sole_reader
from .functions import call


def gather_columns(graph: gs.Graph) -> int:
    """Gather(Transpose(weight), ids)  =>  GatherColumns(weight, ids)

    The exporter transposes the LM head's matrix [hidden, vocabulary] to look tokens up; the call reads
    its columns in place.
    """
    fused = 0
    for gather in nodes(graph, "Gather"):
        transpose = producer(gather.inputs[0], "Transpose")
        if transpose is None or gather.attrs.get("axis", 0) != 0:
            continue
        weight = operand(transpose, 0)
        if (
            not is_constant(weight)
            or list(transpose.attrs.get("perm", [1, 0])) != [1, 0]
            or len(weight.shape) != 2
        ):
            continue
        if sole_reader(graph, transpose.outputs[0]) is not gather:
            continue
        inputs = [weight, gather.inputs[1]]
        call(graph, "GatherColumns", gather.name, inputs, list(gather.outputs), [transpose, gather])
        fused += 1
    return fused


def gather_padded_rows(graph: gs.Graph) -> int:
    """Slice(GatherBlockQuantized(table, ids, …), 0, size, axis -1)  =>  GatherPaddedRows(table, ids, …)

    Rows of the LM head's matrix end in a padded block where the hidden size is no multiple of the block
    size; the exporter cuts it off behind the look-up.
    """
    fused = 0
    for cut in nodes(graph, "Slice"):
        gather = producer(cut.inputs[0], "GatherBlockQuantized")
        if gather is None or sole_reader(graph, gather.outputs[0]) is not cut:
            continue
        table, size = operand(gather, 0), _leading_columns(cut)
        axes = (gather.attrs.get("gather_axis", 0), gather.attrs.get("quantize_axis", 1))
        if size is None or not is_constant(table) or len(table.shape) != 2 or axes not in ((0, 1), (0, -1)):
            continue
        inputs = [operand(gather, index) for index in range(4)]
        attrs = {"bits": gather.attrs.get("bits", 4), "block_size": gather.attrs.get("block_size", 128)}
        name, outputs = gather.name, list(cut.outputs)
        call(graph, "GatherPaddedRows", name, inputs, outputs, [gather, cut], size=[size], **attrs)
        fused += 1
    return fused


def _leading_columns(cut: gs.Node) -> int | None:
    """n of x[..., :n], or None where a Slice does something else."""
    values = [small_value(tensor) if (tensor := operand(cut, i)) is not None else None for i in range(1, 5)]
    start, end, axis, step = (None if value is None else value.reshape(-1).tolist() for value in values)
    if start != [0] or end is None or len(end) != 1 or end[0] < 1 or step not in (None, [1]):
        return None
    rank = len(cut.inputs[0].shape) if cut.inputs[0].shape is not None else None
    return int(end[0]) if axis is not None and axis in ([-1], [rank and rank - 1]) else None
