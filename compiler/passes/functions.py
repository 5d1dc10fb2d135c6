"""Fused operators as model-local ONNX functions.

A fusion that no standard operator expresses becomes a call in the domain `webgpu_compile`; its meaning is a
function body in ONNX text, in `function_bodies.py`. So every dump runs in ONNX Runtime, a wrong fusion is
found by running dumps, and a lowering is registered by the plain operator name.

One operator may have several bodies (a gate with SiLU or with Gelu). They are ONNX function *overloads*
(IR version 10): the attribute named in `OVERLOADED` picks the body, and `dump.py` writes it as the
overload name. All other attributes are passed by reference (`@K`). `sources` lists the names of the nodes
that the call replaced, for comments and reports; no body uses it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs

from ..graph import detach, producer
from .function_bodies import BODIES, INT8_BLOCK, OVERLOADED

DOMAIN = "webgpu_compile"

SOURCES = "sources"
"""The attribute that names replaced nodes. Calls have it, and standard operators that took another in; dumps
leave it out of those."""


def is_call(node: gs.Node) -> bool:
    """Whether a node is a call of one of these functions."""
    return bool(node.domain == DOMAIN)


def int8_block(tensor: gs.Tensor | None) -> int:
    """Values under one scale of a tensor that is int8 on the GPU; 0 of any other."""
    node = producer(tensor) if tensor is not None else None
    if node is None or not is_call(node) or node.outputs[0] is not tensor:
        return 0
    return int(node.attrs.get(INT8_BLOCK, 0))


def overload(node: gs.Node) -> str:
    """Which body of its operator a call means."""
    attribute = OVERLOADED.get(node.op)
    return str(node.attrs[attribute]) if attribute else ""


@cache
def function_proto(op: str, variant: str, opset: int) -> onnx.FunctionProto:
    """The function as ONNX; its standard operators are those of the model's opset. Not to be changed."""
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "com.microsoft" : 1]'
    head += f', overload: "{variant}">' if variant else ">"
    return onnx.parser.parse_function(head + BODIES[op, variant])


def call(
    graph: gs.Graph,
    op: str,
    name: str,
    inputs: list[gs.Tensor | None],
    outputs: list[gs.Tensor | None],
    replaced: list[gs.Node],
    **attrs: object,
) -> gs.Node:
    """Put a call where `replaced` was; an omitted input or output is None.

    The outputs keep their names, so readers and the caller notice nothing.
    """
    position = min(i for i, node in enumerate(graph.nodes) if any(node is old for old in replaced))
    for old in replaced:
        detach(old)
    node = gs.Node(
        op,
        name,
        attrs={**attrs, SOURCES: [name for old in replaced for name in sources(old)]},
        inputs=[gs.Variable.empty() if tensor is None else tensor for tensor in inputs],
        outputs=[gs.Variable.empty() if tensor is None else tensor for tensor in outputs],
        domain=DOMAIN,
    )
    graph.nodes.insert(position, node)
    return node


def sources(node: gs.Node) -> list[str]:
    """Names of the model's nodes that a node stands for: those it replaced, or its own."""
    return list(node.attrs.get(SOURCES) or [node.name])


def function_body(graph: gs.Graph, node: gs.Node) -> list[gs.Node]:
    """The nodes that a call stands for, with its attributes and with copies of its tensors by name.

    The nodes are detached: changing them does not change the graph. Inner values are named
    `call name/value`; constants are copies that share their bytes, and Constant nodes become constants.
    """
    proto = function_proto(node.op, overload(node), graph.opset)
    tensors: dict[str, gs.Tensor] = {"": gs.Variable.empty()}
    for names, actual in ((proto.input, node.inputs), (proto.output, node.outputs)):
        given = {name: tensor.copy() for name, tensor in zip(names, actual, strict=False) if tensor.name}
        tensors.update(given)
    for name in proto.input:
        tensors.setdefault(name, gs.Variable.empty())
    body = []
    for inner in proto.node:
        for name in (*inner.input, *inner.output):
            if name not in tensors:
                tensors[name] = gs.Variable(f"{node.name}/{name}")
        attrs = {}
        for attribute in inner.attribute:
            if not attribute.ref_attr_name:
                value = onnx.helper.get_attribute_value(attribute)
                attrs[attribute.name] = value.decode() if isinstance(value, bytes) else value
            elif attribute.ref_attr_name in node.attrs:
                attrs[attribute.name] = node.attrs[attribute.ref_attr_name]
        if inner.op_type == "Constant":
            values = np.array(attrs["value_ints"], np.int64)
            tensors[inner.output[0]] = gs.Constant(f"{node.name}/{inner.output[0]}", values)
            continue
        inputs = [tensors[name] for name in inner.input]
        while inputs and not inputs[-1].name:
            inputs.pop()
        outputs = [tensors[name] for name in inner.output]
        name = f"{node.name}/{inner.op_type}"
        body.append(gs.Node(inner.op_type, name, attrs, inputs, outputs, inner.domain or None))
    return body
