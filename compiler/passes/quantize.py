"""Where 4-bit layers multiply in integers: activations in int8 are values of their own.

A layer that reads one is an int8 layer to lowering; MatMulNBits of ONNX Runtime rounds its input itself.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import fresh_name, nodes, readers
from .function_bodies import INT8_BLOCK
from .functions import DOMAIN, SOURCES, sources

ACCURACY_INT8 = 4  # accuracy_level of MatMulNBits, com.microsoft version 1


def quantize_activations(graph: gs.Graph, activations: str) -> int:
    """MatMulNBits(x, …)  =>  MatMulNBits(QuantizeActivations(x), …), where int8 activations are wanted

    GatedMatMulNBits likewise. `activations` is the option; `auto` takes int8 where the model's
    accuracy_level is 4. Layers that read the same x in blocks of the same size share one node.
    """
    quantized = 0
    for product in nodes(graph, "MatMulNBits", "GatedMatMulNBits"):
        allowed = product.attrs.get("accuracy_level", 0) == ACCURACY_INT8
        if activations == "float" or (activations == "auto" and not allowed):
            continue
        block = int8_chunk(product.attrs["block_size"])
        product.inputs[0] = _quantized(graph, product, block)
        quantized += 1
    return quantized


def int8_chunk(block_size: int) -> int:
    """Int8 activations under one scale, for 4-bit weights in blocks of `block_size`: what a thread takes at
    a time, 16 bytes of weights."""
    return min(32, block_size)


def _quantized(graph: gs.Graph, product: gs.Node, block: int) -> gs.Tensor:
    """The int8 form of a product's input, in front of it unless another product has made it."""
    x = product.inputs[0]
    for reader in readers(x):
        if reader.op == "QuantizeActivations" and reader.attrs[INT8_BLOCK] == block:
            return reader.outputs[0]
    name = fresh_name(graph, f"{x.name}/int8x{block}")
    value = gs.Variable(name, x.dtype, x.shape)
    attrs = {INT8_BLOCK: block, SOURCES: sources(product)}
    node = gs.Node("QuantizeActivations", name, attrs, [x], [value], DOMAIN)
    graph.nodes.insert(next(i for i, other in enumerate(graph.nodes) if other is product), node)
    return value
