"""Fused operators as model-local ONNX functions.

A fusion that no standard operator expresses becomes a call in the domain `webgpu_compile`, and its
meaning is a function body in ONNX text, below. So every dump runs in ONNX Runtime, a wrong fusion is
found by running dumps, and a lowering is registered by the plain operator name.

One operator may have several bodies (a gate with SiLU or with Gelu). They are ONNX function *overloads*
(IR version 10): the attribute named in `OVERLOADED` picks the body, and `dump.py` writes it as the
overload name. All other attributes are passed by reference (`@K`). `sources` lists the names of the nodes
that the call replaced, for comments and reports; no body uses it.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs

from ..graph import detach

DOMAIN = "webgpu_compile"

SOURCES = "sources"
"""The attribute that names replaced nodes. Calls have it, and standard operators that took another in; dumps
leave it out of those."""

OVERLOADED = {"GatedMatMulNBits": "activation", "GatedMatMul": "activation", "QkvAttention": "projection"}

_NBITS = "K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size, "
_NBITS += "accuracy_level: int = @accuracy_level"
_GQA = (
    "num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale, "
    "local_window_size: int = @local_window_size, softcap: float = @softcap, do_rotary: int = @do_rotary, "
    "rotary_interleaved: int = @rotary_interleaved"
)
NBITS_ATTRS = ("K", "N", "bits", "block_size", "accuracy_level")
GQA_ATTRS = (
    "num_heads",
    "kv_num_heads",
    "scale",
    "local_window_size",
    "softcap",
    "do_rotary",
    "rotary_interleaved",
)
ACTIVATIONS = {
    "silu": "s = Sigmoid(g)  a = Mul(g, s)",
    "gelu": 'a = Gelu <approximate = "none"> (g)',
    "gelu_tanh": 'a = Gelu <approximate = "tanh"> (g)',
}
_PROJECTIONS = {
    "nbits": f"qkv = com.microsoft.MatMulNBits <{_NBITS}> (x, weight, scales, zero_points, , bias)",
    "dense": "qkv = MatMul(x, weight)",
    "dense_bias": "m = MatMul(x, weight)  qkv = Add(m, bias)",
}
_GATED_INPUTS = "x, gate, gate_scales, gate_zero_points, gate_bias, up, up_scales, up_zero_points, up_bias"
_QKV_INPUTS = (
    "x, weight, scales, zero_points, bias, past_key, past_value, seqlens_k, total_sequence_length, "
    "cos_cache, sin_cache"
)

BODIES: dict[tuple[str, str], str] = {
    ("MatMulBias", ""): """
        MatMulBias <sources> (x, weight, bias) => (y) { m = MatMul(x, weight)  y = Add(m, bias) }""",
    ("LastToken", ""): """
        LastToken <sources> (x) => (y) {
            last = Constant <value_ints: ints = [-1]> ()
            y = Gather <axis = 1> (x, last)
        }""",
    ("GatherColumns", ""): """
        GatherColumns <sources> (table, indices) => (y) {
            rows = Transpose <perm = [1, 0]> (table)
            y = Gather <axis = 0> (rows, indices)
        }""",
    ("GatherPaddedRows", ""): """
        GatherPaddedRows <bits, block_size, size, sources> (table, indices, scales, zero_points) => (y) {
            rows = com.microsoft.GatherBlockQuantized <
                bits: int = @bits, block_size: int = @block_size, gather_axis = 0, quantize_axis = 1
            > (table, indices, scales, zero_points)
            start = Constant <value_ints: ints = [0]> ()
            end = Constant <value_ints: ints = @size> ()
            axis = Constant <value_ints: ints = [-1]> ()
            y = Slice(rows, start, end, axis)
        }""",
    **{
        ("GatedMatMulNBits", name): f"""
        GatedMatMulNBits <{", ".join(NBITS_ATTRS)}, activation, sources> ({_GATED_INPUTS}) => (y) {{
            g = com.microsoft.MatMulNBits <{_NBITS}> (x, gate, gate_scales, gate_zero_points, , gate_bias)
            u = com.microsoft.MatMulNBits <{_NBITS}> (x, up, up_scales, up_zero_points, , up_bias)
            {activation}
            y = Mul(a, u)
        }}"""
        for name, activation in ACTIVATIONS.items()
    },
    **{
        ("GatedMatMul", name): f"""
        GatedMatMul <activation, sources> (x, gate, up) => (y) {{
            g = MatMul(x, gate)
            u = MatMul(x, up)
            {activation}
            y = Mul(a, u)
        }}"""
        for name, activation in ACTIVATIONS.items()
    },
    **{
        ("QkvAttention", name): f"""
        QkvAttention <{", ".join(NBITS_ATTRS + GQA_ATTRS)}, projection, sources> ({_QKV_INPUTS})
            => (y, present_key, present_value) {{
            {projection}
            y, present_key, present_value = com.microsoft.GroupQueryAttention <{_GQA}>
                (qkv, , , past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache)
        }}"""
        for name, projection in _PROJECTIONS.items()
    },
}


def is_call(node: gs.Node) -> bool:
    """Whether a node is a call of one of these functions."""
    return bool(node.domain == DOMAIN)


def overload(node: gs.Node) -> str:
    """Which body of its operator a call means."""
    attribute = OVERLOADED.get(node.op)
    return str(node.attrs[attribute]) if attribute else ""


def function_proto(op: str, variant: str, opset: int) -> onnx.FunctionProto:
    """The function as ONNX; its standard operators are those of the model's opset."""
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "com.microsoft" : 1]'
    head += f', overload: "{variant}">' if variant else ">"
    return onnx.parser.parse_function(head + BODIES[op, variant])


def call(
    graph: gs.Graph,
    op: str,
    name: str,
    inputs: list[gs.Tensor | None],
    outputs: list[gs.Tensor],
    replaced: list[gs.Node],
    **attrs: object,
) -> gs.Node:
    """Put a call where `replaced` was; an omitted optional input is None.

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
        outputs=outputs,
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
        for index, name in enumerate(names):
            present = index < len(actual) and actual[index].name
            tensors[name] = actual[index].copy() if present else gs.Variable.empty()
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
