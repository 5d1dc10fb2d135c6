"""Activations become int8 where they are computed, which saves a dispatch."""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from ..graph import detach, is_read, n_rows, nodes, operand, producer, readers, result, sole_reader
from .function_bodies import INT8_BLOCK
from .functions import call, int8_block
from .fuse_attention import ROTARY_INPUTS, attention_attrs, can_be_called
from .projection import fits_a_binding

ATTENTION_BLOCK = 32  # values of a head that one workgroup of attention's merge writes


def fuse_quantize(graph: gs.Graph) -> int:
    """QuantizeActivations(f(x))  =>  f(x) that writes int8, for a norm f

    Also for attention, and for one row of a gated product that multiplies in integers. A norm may be read as
    floats besides.
    """
    fused = 0
    for quantize in nodes(graph, "QuantizeActivations"):
        value, block = quantize.inputs[0], int8_block(quantize.outputs[0])
        node = producer(value, *_RULES)
        if node is None or not isinstance(value.shape[-1], int) or value.shape[-1] % block:
            continue
        if sum(reader.op == quantize.op for reader in readers(value)) == 1:
            fused += _RULES[node.op](graph, node, quantize, block)
    return fused


def _norm(graph: gs.Graph, node: gs.Node, quantize: gs.Node, block: int) -> bool:
    if is_read(graph, result(node, 1)):
        return False
    inputs, outputs = list(node.inputs), _norm_outputs(graph, node, quantize)
    attrs = {"axis": node.attrs.get("axis", -1), "epsilon": node.attrs.get("epsilon", 1e-5)}
    call(graph, "QuantizedNorm", node.name, inputs, outputs, [node], norm=node.op, int8_block=block, **attrs)
    return True


def _skip_norm(graph: gs.Graph, node: gs.Node, quantize: gs.Node, block: int) -> bool:
    if is_read(graph, result(node, 1)) or is_read(graph, result(node, 2)):
        return False
    added = result(node, 3)
    outputs = [*_norm_outputs(graph, node, quantize), added if is_read(graph, added) else None]
    epsilon = node.attrs.get("epsilon", 1e-5)
    inputs = list(node.inputs)
    call(graph, "QuantizedSkipNorm", node.name, inputs, outputs, [node], epsilon=epsilon, int8_block=block)
    return True


def _norm_outputs(graph: gs.Graph, node: gs.Node, quantize: gs.Node) -> list[gs.Tensor | None]:
    """[the norm as int8, as floats where something else reads them]; the node that made int8 goes."""
    y, y_int8 = node.outputs[0], quantize.outputs[0]
    detach(quantize)
    return [y_int8, y if is_read(graph, y) else None]


def _gated(graph: gs.Graph, node: gs.Node, quantize: gs.Node, block: int) -> bool:
    if n_rows(node.outputs[0]) != 1 or int8_block(node.inputs[0]) != block:
        return False
    if not fits_a_binding(node.inputs[1], node.inputs[5]) or not _only_int8(graph, node, quantize):
        return False
    _write_int8(node, quantize, block)
    return True


def _attention(graph: gs.Graph, node: gs.Node, quantize: gs.Node, block: int) -> bool:
    heads = node.attrs["num_heads"]
    if block != ATTENTION_BLOCK or node.outputs[0].shape[-1] // heads % block:
        return False
    if not _only_int8(graph, node, quantize):
        return False
    if node.op == "GroupQueryAttention":
        if not can_be_called(node):
            return False
        inputs = [operand(node, index) for index in range(ROTARY_INPUTS.stop)]
        outputs, attrs = list(node.outputs), attention_attrs(node)
        node = call(graph, "QuantizedAttention", node.name, inputs, outputs, [node], **attrs)
    _write_int8(node, quantize, block)
    return True


def _only_int8(graph: gs.Graph, node: gs.Node, quantize: gs.Node) -> bool:
    return sole_reader(graph, node.outputs[0]) is quantize


def _write_int8(node: gs.Node, quantize: gs.Node, block: int) -> None:
    y_int8 = quantize.outputs[0]
    detach(quantize)
    node.outputs[0] = y_int8
    node.attrs[INT8_BLOCK] = block


_RULES: dict[str, Callable[[gs.Graph, gs.Node, gs.Node, int], bool]] = {
    "SimplifiedLayerNormalization": _norm,
    "RMSNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "GatedMatMulNBits": _gated,
    "GroupQueryAttention": _attention,
    "QkvAttention": _attention,
}
