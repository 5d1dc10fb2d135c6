"""A matrix product and the addition of its bias become one node."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import detach, is_constant, nodes, operand, producer, sole_reader
from .functions import SOURCES, call, sources
from .projection import BIAS


def fuse_matmul_bias(graph: gs.Graph) -> int:
    """Add(MatMulNBits(x, …), bias)  =>  MatMulNBits(x, …, bias);  Add(MatMul(x, w), bias)  =>  MatMulBias

    The bias is a constant of one dimension, as long as the product's rows.
    """
    fused = 0
    for add in nodes(graph, "Add"):
        for product_index, bias_index in ((0, 1), (1, 0)):
            product = producer(add.inputs[product_index], "MatMulNBits", "MatMul")
            bias = operand(add, bias_index)
            if product is None or not _is_bias(product, bias):
                continue
            if sole_reader(graph, product.outputs[0]) is not add or operand(product, BIAS) is not None:
                continue
            if product.op == "MatMulNBits":
                _give_bias(product, add, bias)
            else:
                inputs = [*product.inputs, bias]
                call(graph, "MatMulBias", product.name, inputs, list(add.outputs), [product, add])
            fused += 1
            break
    return fused


def _is_bias(product: gs.Node, bias: gs.Tensor | None) -> bool:
    if not is_constant(bias) or len(bias.shape) != 1:
        return False
    if product.op == "MatMulNBits":
        return bool(bias.shape[0] == product.attrs["N"])
    weight = product.inputs[1]
    return is_constant(weight) and len(weight.shape) == 2 and bias.shape[0] == weight.shape[1]


def _give_bias(product: gs.Node, add: gs.Node, bias: gs.Tensor) -> None:
    output = add.outputs[0]
    product.attrs[SOURCES] = [*sources(product), *sources(add)]
    detach(add)
    while len(product.inputs) < BIAS:
        product.inputs.append(gs.Variable.empty())
    if len(product.inputs) > BIAS:
        product.inputs[BIAS] = bias
    else:
        product.inputs.append(bias)
    product.outputs.clear()
    product.outputs.append(output)
