"""The arg-max of the logits: what greedy decoding asks of a program, as a node of its graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import detach, n_rows, nodes, producer
from ..sequence import ARGMAX_INDICES, ARGMAX_VALUES
from .functions import DOMAIN, SOURCES, call, sources
from .projection import PROJECTIONS, is_plain, kind, nbits_attrs, weights


def append_argmax(graph: gs.Graph, logits: str) -> int:
    """logits  =>  logits, ArgMaxParts(logits)

    On the GPU the two outputs are the greatest logits of parts of the vocabulary, and their tokens; `sample`
    reads them.
    """
    scores = next(output for output in graph.outputs if output.name == logits)
    shape = [*scores.shape[:-1], 1]
    values = gs.Variable(ARGMAX_VALUES, scores.dtype, shape)
    indices = gs.Variable(ARGMAX_INDICES, np.dtype(np.int32), shape)
    attrs = {SOURCES: sources(scores.inputs[0])}
    graph.nodes.append(gs.Node("ArgMaxParts", "argmax", attrs, [scores], [values, indices], DOMAIN))
    graph.outputs.extend([values, indices])
    return 1


def fuse_argmax(graph: gs.Graph) -> int:
    """ArgMaxParts(MatMulNBits(x, …))  =>  ArgMaxMatMul(x, …), for one row; the logits stay an output

    MatMul and MatMulBias likewise: `projection` says which, as in QkvAttention.
    """
    fused = 0
    for argmax in nodes(graph, "ArgMaxParts"):
        product = producer(argmax.inputs[0], *PROJECTIONS)
        if product is None or n_rows(product.outputs[0]) != 1 or not is_plain(product):
            continue
        inputs, attrs = [product.inputs[0], *weights(product)], nbits_attrs(product)
        outputs, form = [*product.outputs, *argmax.outputs], kind(product)
        detach(argmax)
        call(graph, "ArgMaxMatMul", product.name, inputs, outputs, [product], projection=form, **attrs)
        fused += 1
    return fused
