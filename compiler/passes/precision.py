"""Undo the casts that ONNX Runtime inserts when it saves a model optimised for its CPU provider.

Where that provider has no float16 kernel, ONNX Runtime wraps the node into casts to float32 and names
everything `InsertedPrecisionFreeCast_…`. On the GPU the detour costs dispatches and hides the fusions.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..graph import detach, is_graph_output, nodes, readers, replace_reads
from ..importer.external import read

PREFIX = "InsertedPrecisionFreeCast_"


def undo_inserted_casts(graph: gs.Graph) -> int:
    """Cast(op(Cast(x, f32)), f16)  =>  op(x), for casts that ONNX Runtime inserted

    Only islands that are closed: whatever reads a float32 twin is in the island, or casts back.
    """
    island = {
        id(tensor): tensor
        for node in graph.nodes
        for tensor in (*node.inputs, *node.outputs)
        if tensor.name.startswith(PREFIX)
        and tensor.dtype is not None
        and np.dtype(tensor.dtype) == np.float32
    }
    if not island or not _closed(graph, island):
        return 0
    undone = 0
    for tensor in island.values():
        if isinstance(tensor, gs.Constant):
            _narrow_constant(tensor)
        else:
            tensor.dtype = np.dtype(np.float16)
    for node in nodes(graph, "Cast"):
        into = id(node.outputs[0]) in island and node.name.startswith(PREFIX)
        if into or (id(node.inputs[0]) in island and node.attrs["to"] == onnx.TensorProto.FLOAT16):
            source, target = node.inputs[0], node.outputs[0]
            detach(node)
            replace_reads(graph, target, source)
            undone += 1
    return undone


def _closed(graph: gs.Graph, island: dict[int, gs.Tensor]) -> bool:
    for tensor in island.values():
        if is_graph_output(graph, tensor):
            return False
        for node in readers(tensor):
            back = node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT16
            if not back and not all(id(output) in island for output in node.outputs if output.name):
                return False
        for node in tensor.inputs:
            into = node.op == "Cast" and np.dtype(node.inputs[0].dtype or np.int8) == np.float16
            floats = [t for t in node.inputs if t.name and np.dtype(t.dtype or np.int8) == np.float32]
            if not into and not all(id(entry) in island for entry in floats):
                return False
    return True


def _narrow_constant(tensor: gs.Constant) -> None:
    tensor.values = read(tensor).astype(np.float16)
