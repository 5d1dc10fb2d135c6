"""Is the graph a graph: every value written once, before it is read.

onnx.checker would say so too, but refuses the operators that exporters put into the default domain
(SimplifiedLayerNormalization, MemcpyToHost), and allocates what a hostile file asks for.
"""

from __future__ import annotations

import onnx

from ..errors import CompileError
from .external import tensor_nbytes

MAX_NODES = 1_000_000
REPAIR = "the file is damaged, export the model again"


def check_structure(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """Refuse a graph that is not in static single assignment, or whose declared shapes are absurd.

    Raises:
        CompileError: naming the node or value.
    """
    known = set(outer)
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    known |= constants
    for value in graph.input:
        if not value.name:
            raise CompileError("the graph", "an input has no name", REPAIR)
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            raise CompileError(f"input {value.name}", "it is not a tensor", "only tensors can go to the GPU")
        known.add(value.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_value(value)
    if len(graph.node) > MAX_NODES:
        raise CompileError("the graph", f"it has over {MAX_NODES} nodes", REPAIR)
    _check_nodes(graph, known, set(outer))
    for value in graph.output:
        if value.name not in known:
            raise CompileError(f"output {value.name}", "no node writes it", REPAIR)


def _check_nodes(graph: onnx.GraphProto, known: set[str], outer: set[str]) -> None:
    for node in graph.node:
        subject = f"{node.op_type} node {node.name or next(iter(node.output), '')}"
        for name in node.input:
            if name and name not in known:
                raise CompileError(subject, f"it reads {name!r}, which nothing before it writes", REPAIR)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                check_structure(attribute.g, frozenset(known))
            for body in attribute.graphs:
                check_structure(body, frozenset(known))
        for name in node.output:
            if name and name in known and name not in outer:
                raise CompileError(subject, f"it writes {name!r}, which is written already", REPAIR)
            if name:
                known.add(name)


def _check_value(value: onnx.ValueInfoProto) -> None:
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
    tensor_nbytes(f"value {value.name}", value.type.tensor_type.elem_type, tuple(dims))
