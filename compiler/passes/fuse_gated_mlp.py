"""The gate and the up projection of an MLP read the same input: one kernel computes act(gate) · up."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import is_constant, nodes, operand, producer, readers
from .function_bodies import INT8_BLOCK
from .functions import call
from .projection import GROUP_INDEX, nbits_attrs, weights


def fuse_gated_mlp(graph: gs.Graph) -> int:
    """Mul(act(MatMulNBits(x, gate)), MatMulNBits(x, up))  =>  GatedMatMulNBits(x, gate, up)

    The same for MatMul => GatedMatMul. `act` is x·Sigmoid(x), QuickGelu with alpha 1, Gelu or FastGelu.
    """
    fused = 0
    for product in nodes(graph, "Mul"):
        for gate_side in (0, 1):
            match = _match(graph, product, gate_side)
            if match is None:
                continue
            gate, up, activation, inner = match
            outputs, replaced = list(product.outputs), [gate, up, *inner, product]
            if gate.op == "MatMul":
                inputs, op, attrs = [*gate.inputs, up.inputs[1]], "GatedMatMul", {}
            else:
                inputs, op = [gate.inputs[0], *weights(gate), *weights(up)], "GatedMatMulNBits"
                attrs = {**nbits_attrs(gate), INT8_BLOCK: 0}
            call(graph, op, product.name, inputs, outputs, replaced, activation=activation, **attrs)
            fused += 1
            break
    return fused


def _match(
    graph: gs.Graph, product: gs.Node, gate_side: int
) -> tuple[gs.Node, gs.Node, str, list[gs.Node]] | None:
    """(gate, up, activation, the nodes between gate and product)."""
    if len(product.inputs) != 2:
        return None
    activated, upper = product.inputs[gate_side], product.inputs[1 - gate_side]
    found = _activation(activated)
    up = producer(upper, "MatMulNBits", "MatMul")
    if found is None or up is None:
        return None
    source, activation, inner = found
    gate = producer(source, "MatMulNBits", "MatMul")
    if gate is None or gate is up or gate.op != up.op or gate.inputs[0] is not up.inputs[0]:
        return None
    allowed = {id(node) for node in (*inner, product)}
    values = [gate.outputs[0], up.outputs[0], *(node.outputs[0] for node in inner)]
    private = all(id(reader) in allowed for value in values for reader in readers(value))
    if not private or any(value is output for value in values for output in graph.outputs):
        return None
    return (gate, up, activation, inner) if _alike(gate, up) else None


def _activation(value: gs.Tensor) -> tuple[gs.Tensor, str, list[gs.Node]] | None:
    """(its argument, name, nodes) of the activation that computes `value`."""
    node = producer(value, "Mul", "Gelu", "FastGelu", "QuickGelu")
    if node is None:
        return None
    if node.op == "QuickGelu":  # com.microsoft: x · Sigmoid(alpha · x)
        return (node.inputs[0], "silu", [node]) if node.attrs.get("alpha", 1.702) == 1.0 else None
    if node.op == "FastGelu":  # com.microsoft, with an optional bias
        return (node.inputs[0], "gelu_tanh", [node]) if operand(node, 1) is None else None
    if node.op == "Gelu":
        tanh = node.attrs.get("approximate", "none") == "tanh"
        return node.inputs[0], "gelu_tanh" if tanh else "gelu", [node]
    for side in (0, 1):
        sigmoid = producer(node.inputs[side], "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is node.inputs[1 - side]:
            return sigmoid.inputs[0], "silu", [sigmoid, node]
    return None


def _alike(gate: gs.Node, up: gs.Node) -> bool:
    if not is_constant(gate.inputs[1]) or not is_constant(up.inputs[1]):
        return False
    if gate.op == "MatMul":
        return list(gate.inputs[1].shape) == list(up.inputs[1].shape) and len(gate.inputs[1].shape) == 2
    if any(operand(node, GROUP_INDEX) is not None for node in (gate, up)):
        return False
    return nbits_attrs(gate) == nbits_attrs(up)
