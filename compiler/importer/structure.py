"""Is the graph a graph: every value written once, before it is read.

onnx.checker would say so too, but refuses the operators that exporters put into the default domain
(SimplifiedLayerNormalization, MemcpyToHost), and allocates what a hostile file asks for.
"""

from __future__ import annotations

import onnx

from ..errors import CompileError
from .external import tensor_nbytes

MAX_NODES = 1_000_000
_INT, _FLOAT = onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT
_INTEGERS = (
    "K N bits block_size accuracy_level num_heads kv_num_heads local_window_size do_rotary "
    "rotary_interleaved smooth_softmax gather_axis quantize_axis axis stash_type"
)
ATTRIBUTES: dict[str, int] = {
    **dict.fromkeys(_INTEGERS.split(), _INT),
    **dict.fromkeys(("scale", "softcap", "epsilon", "alpha"), _FLOAT),
}
"""Attribute types of the operators that onnx does not know, by name."""
MIN_INPUTS = {
    "MatMulNBits": 3,
    "GroupQueryAttention": 7,
    "GatherBlockQuantized": 3,
    "SimplifiedLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 3,
    "SkipLayerNormalization": 3,
    "QuickGelu": 1,
    "MemcpyToHost": 1,
    "MemcpyFromHost": 1,
}
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
    _check_text(graph)
    for value in graph.input:
        if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.elem_type:
            subject = f"input {value.name}"
            raise CompileError(
                subject, "it is not a tensor of a known type", "only tensors can go to the GPU"
            )
        known.add(value.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_value(value)
    if len(graph.node) > MAX_NODES:
        raise CompileError("the graph", f"it has over {MAX_NODES} nodes", REPAIR)
    _check_nodes(graph, known, set(outer))
    for value in graph.output:
        if value.name not in known:
            raise CompileError(f"output {value.name}", "no node writes it", REPAIR)


def _check_text(graph: onnx.GraphProto) -> None:
    """Names are text: protobuf hands over bytes where they are not UTF-8, and an empty name would tie
    every omitted operand together."""
    values = (*graph.input, *graph.output, *graph.value_info)
    required = [*(value.name for value in values), *(tensor.name for tensor in graph.initializer)]
    if not all(required):
        raise CompileError("the graph", "a value has no name", REPAIR)
    for tensor in graph.initializer:
        required += [text for entry in tensor.external_data for text in (entry.key, entry.value)]
    for node in graph.node:
        required += [node.name, node.op_type, node.domain, *node.input, *node.output]
        required += [attribute.name for attribute in node.attribute]
    if not all(isinstance(text, str) for text in required):
        raise CompileError("the graph", "a name is not UTF-8", REPAIR)


def _check_signature(subject: str, node: onnx.NodeProto) -> None:
    """What passes and lowering rely on: enough inputs, and attributes of the right type."""
    known, n_inputs = dict(ATTRIBUTES), MIN_INPUTS.get(node.op_type, 0)
    if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type):
        schema = onnx.defs.get_schema(node.op_type)
        n_inputs = schema.min_input
        known = {name: int(a.type.value) for name, a in schema.attributes.items()}  # type: ignore[attr-defined]
    if len(node.input) < n_inputs:
        problem = f"it has {len(node.input)} inputs, its operator needs {n_inputs}"
        raise CompileError(subject, problem, REPAIR)
    for attribute in node.attribute:
        if known.get(attribute.name, attribute.type) != attribute.type and not attribute.ref_attr_name:
            problem = f"its attribute {attribute.name} has the wrong type"
            raise CompileError(subject, problem, REPAIR)


def _check_nodes(graph: onnx.GraphProto, known: set[str], outer: set[str]) -> None:
    for node in graph.node:
        subject = f"{node.op_type} node {node.name or next(iter(node.output), '')}"
        _check_signature(subject, node)
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
