"""The projection to queries, keys and values and the attention that reads them become one node."""

from __future__ import annotations

import logging

import onnx_graphsurgeon as gs

from ..graph import label, n_rows, nodes, operand, producer, sole_reader
from .function_bodies import GQA_ATTRS, INT8_BLOCK
from .functions import call
from .projection import PROJECTIONS, fits_a_binding, is_plain, kind, nbits_attrs, weights

CACHE_INPUTS, ROTARY_INPUTS = range(3, 7), range(7, 9)
"""Inputs of GroupQueryAttention that a call of ours has behind q, k and v: past keys and values and the two
lengths; cosines and sines. Not position ids, attention bias, sinks or norms."""
DEFAULTS: dict[str, int | float] = {
    "scale": 0.0,
    "local_window_size": -1,
    "softcap": 0.0,
    "do_rotary": 0,
    "rotary_interleaved": 0,
}
HARMLESS: dict[str, tuple[object, ...]] = {
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
    "smooth_softmax": (-1, 0),
    "causal": (1,),
    "sliding_window_cache": (0,),
    "qk_output": (0,),
    "kv_cache_bit_width": (0,),
}
"""Attributes that say nothing: the defaults, which ONNX Runtime writes out when it saves a model."""
UNUSED = ("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon")  # without norm weights, inputs 14 and 15

log = logging.getLogger(__name__)


def fuse_qkv_attention(graph: gs.Graph) -> int:
    """GroupQueryAttention(MatMulNBits(x, …), , , past…)  =>  QkvAttention(x, …, past…), for one row

    The product rotates what it computes and appends it to the cache. For packed queries, keys and values
    that nothing else reads, with rotation inside the attention. MatMul and MatMulBias likewise;
    `projection` says which ("nbits", "dense", "dense_bias").
    """
    fused = 0
    for attention in nodes(graph, "GroupQueryAttention"):
        product = producer(attention.inputs[0], *PROJECTIONS)
        if product is None or not can_be_called(attention) or attention.attrs.get("do_rotary", 0) != 1:
            continue
        packed = operand(attention, 1) is None and operand(attention, 2) is None
        if not packed or not is_plain(product) or not fits_a_binding(product.inputs[1]):
            continue
        if n_rows(product.outputs[0]) != 1 or sole_reader(graph, product.outputs[0]) is not attention:
            continue
        inputs = [
            product.inputs[0],
            *weights(product),
            *(operand(attention, index) for index in (*CACHE_INPUTS, *ROTARY_INPUTS)),
        ]
        outputs, replaced = list(attention.outputs), [product, attention]
        attrs = {**nbits_attrs(product), **attention_attrs(attention), INT8_BLOCK: 0}
        call(
            graph,
            "QkvAttention",
            attention.name,
            inputs,
            outputs,
            replaced,
            projection=kind(product),
            **attrs,
        )
        fused += 1
    return fused


def can_be_called(attention: gs.Node) -> bool:
    """Whether a call of ours can say what a GroupQueryAttention does."""
    given = {index for index in range(3, len(attention.inputs)) if operand(attention, index) is not None}
    if not {*CACHE_INPUTS} <= given <= {*CACHE_INPUTS, *ROTARY_INPUTS}:
        return False
    strange = [
        name
        for name, value in attention.attrs.items()
        if name not in (*GQA_ATTRS, *UNUSED) and value not in HARMLESS.get(name, ())
    ]
    if strange:
        log.info("%s is not fused: attributes %s", label(attention), strange)
    return not strange and len(attention.outputs) == 3


def attention_attrs(attention: gs.Node) -> dict[str, object]:
    """GroupQueryAttention's attributes, with its defaults."""
    return {name: attention.attrs.get(name, DEFAULTS.get(name)) for name in GQA_ATTRS}
