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

from functools import cache

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs

from ..graph import detach, producer

DOMAIN = "webgpu_compile"

SOURCES = "sources"
"""The attribute that names replaced nodes. Calls have it, and standard operators that took another in; dumps
leave it out of those."""

OVERLOADED = {
    "GatedMatMulNBits": "activation",
    "GatedMatMul": "activation",
    "QkvAttention": "projection",
    "ArgMaxMatMul": "projection",
    "QuantizedNorm": "norm",
}

INT8_BLOCK = "int8_block"
"""The attribute of calls that write their first output as int8, in blocks of so many values; 0 of those that
could. To ONNX Runtime int8 activations are the values they were: its MatMulNBits rounds them itself."""

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
    "nbits": f"p = com.microsoft.MatMulNBits <{_NBITS}> (x, weight, scales, zero_points, , bias)",
    "dense": "p = MatMul(x, weight)",
    "dense_bias": "m = MatMul(x, weight)  p = Add(m, bias)",
}
_LENGTHS = "past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache"
_GATED_INPUTS = "x, gate, gate_scales, gate_zero_points, gate_bias, up, up_scales, up_zero_points, up_bias"
_PROJECTION_INPUTS = "x, weight, scales, zero_points, bias"
_QKV_ATTRS = ", ".join((*NBITS_ATTRS, *GQA_ATTRS, "projection", INT8_BLOCK, "sources"))

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
        GatedMatMulNBits <{", ".join(NBITS_ATTRS)}, activation, {INT8_BLOCK}, sources> ({_GATED_INPUTS})
            => (y) {{
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
        QkvAttention <{_QKV_ATTRS}> ({_PROJECTION_INPUTS}, {_LENGTHS}) => (y, present_key, present_value) {{
            {projection}
            y, present_key, present_value = com.microsoft.GroupQueryAttention <{_GQA}> (p, , , {_LENGTHS})
        }}"""
        for name, projection in _PROJECTIONS.items()
    },
    ("QuantizedAttention", ""): f"""
        QuantizedAttention <{", ".join(GQA_ATTRS)}, {INT8_BLOCK}, sources> (q, k, v, {_LENGTHS})
            => (y, present_key, present_value) {{
            y, present_key, present_value = com.microsoft.GroupQueryAttention <{_GQA}> (q, k, v, {_LENGTHS})
        }}""",
    ("QuantizeActivations", ""): f"""
        QuantizeActivations <{INT8_BLOCK}, sources> (x) => (y) {{ y = Identity(x) }}""",
    # ONNX Runtime looks for the attribute stash_type of a norm in a function without asking if it is there.
    **{
        ("QuantizedNorm", norm): f"""
        QuantizedNorm <axis, epsilon, norm, {INT8_BLOCK}, sources> (x, weight) => (y, y_float) {{
            n = {norm} <axis: int = @axis, epsilon: float = @epsilon, stash_type = 1> (x, weight)
            y = Identity(n)
            y_float = Identity(n)
        }}"""
        for norm in ("SimplifiedLayerNormalization", "RMSNormalization")
    },
    ("QuantizedSkipNorm", ""): f"""
        QuantizedSkipNorm <epsilon, {INT8_BLOCK}, sources> (x, skip, weight, bias) => (y, y_float, sum) {{
            n, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization
                <epsilon: float = @epsilon> (x, skip, weight, bias)
            y = Identity(n)
            y_float = Identity(n)
        }}""",
    ("ResidualNormMatMulNBits", ""): f"""
        ResidualNormMatMulNBits <{", ".join(NBITS_ATTRS)}, epsilon, {INT8_BLOCK}, sources>
            ({_PROJECTION_INPUTS}, residual, norm_weight) => (y, sum) {{
            {_PROJECTIONS["nbits"]}
            y, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization
                <epsilon: float = @epsilon> (p, residual, norm_weight)
        }}""",
    ("ArgMaxParts", ""): """
        ArgMaxParts <sources> (x) => (values, indices) {
            one = Constant <value_ints: ints = [1]> ()
            values, wide = TopK (x, one)
            indices = Cast <to = 6> (wide)
        }""",
    **{
        ("ArgMaxMatMul", name): f"""
        ArgMaxMatMul <{", ".join(NBITS_ATTRS)}, projection, sources> ({_PROJECTION_INPUTS})
            => (y, values, indices) {{
            {projection}
            y = Identity(p)
            one = Constant <value_ints: ints = [1]> ()
            values, wide = TopK (y, one)
            indices = Cast <to = 6> (wide)
        }}"""
        for name, projection in _PROJECTIONS.items()
    },
}


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
