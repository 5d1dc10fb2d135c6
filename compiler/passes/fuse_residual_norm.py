"""The residual stream: a product, the addition to what was there, and the norm in front of the next layer."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph import detach, is_read, n_rows, nodes, operand, producer, result, sole_reader
from .functions import call, int8_block
from .projection import fits_a_binding, is_plain, nbits_attrs, weights


def fuse_residual_norm(graph: gs.Graph) -> int:
    """QuantizeActivations(SkipSimplifiedLayerNormalization(MatMulNBits(x, …), residual, weight))
    =>  ResidualNormMatMulNBits(x, …, residual, weight), for one row

    A workgroup knows only its part of the row, so the norm's factor, one number, is left to the layers that
    read the result; hence they all must multiply in integers, in blocks as the product does. The final norm
    and the LM head are such a pair too.
    """
    fused = 0
    for quantize in nodes(graph, "QuantizeActivations"):
        norm = producer(quantize.inputs[0], "SkipSimplifiedLayerNormalization")
        if norm is None or sole_reader(graph, norm.outputs[0]) is not quantize or not _is_simple(graph, norm):
            continue
        for side in (0, 1):
            product = producer(norm.inputs[side], "MatMulNBits")
            if product is None or not _matches(graph, product, norm, quantize):
                continue
            inputs = [product.inputs[0], *weights(product), norm.inputs[1 - side], norm.inputs[2]]
            added = result(norm, 3)
            outputs = [quantize.outputs[0], added if is_read(graph, added) else None]
            attrs = {**nbits_attrs(product), "epsilon": norm.attrs.get("epsilon", 1e-5)}
            block = int8_block(quantize.outputs[0])
            detach(quantize)
            call(
                graph,
                "ResidualNormMatMulNBits",
                product.name,
                inputs,
                outputs,
                [product, norm],
                int8_block=block,
                **attrs,
            )
            fused += 1
            break
    return fused


def deferred_epsilon(x: gs.Tensor) -> float:
    """The epsilon of the RMSNorm whose factor a value lacks on the GPU; 0 of any other value."""
    writer = producer(x, "ResidualNormMatMulNBits")
    return float(writer.attrs["epsilon"]) if writer is not None and writer.outputs[0] is x else 0.0


def _is_simple(graph: gs.Graph, norm: gs.Node) -> bool:
    unread = not any(is_read(graph, result(norm, index)) for index in (1, 2))
    return unread and operand(norm, 3) is None and norm.attrs.get("epsilon", 1e-5) > 0


def _matches(graph: gs.Graph, product: gs.Node, norm: gs.Node, quantize: gs.Node) -> bool:
    y, block = product.outputs[0], int8_block(quantize.outputs[0])
    if n_rows(y) != 1 or sole_reader(graph, y) is not norm or not is_plain(product):
        return False
    if [value is y for value in norm.inputs[:2]].count(True) != 1:
        return False
    in_blocks = int8_block(product.inputs[0]) == block and product.attrs["N"] % block == 0
    return in_blocks and fits_a_binding(product.inputs[1])
