"""The tied embedding of an unquantised model: one matrix, read as columns by the LM head."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import is_constant, nodes, operand, producer, sole_reader
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
