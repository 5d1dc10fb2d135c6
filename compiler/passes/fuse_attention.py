"""The projection to queries, keys and values and the attention that reads them become one node."""

from __future__ import annotations

import logging

import onnx_graphsurgeon as gs

from ..graph import is_constant, label, nodes, operand, producer, sole_reader
from .functions import GQA_ATTRS, NBITS_ATTRS, call
from .fuse_gated_mlp import BIAS, GROUP_INDEX, SCALES, ZERO_POINTS

LAST_FUSED_INPUT = 8  # inputs 9 and up (position ids, attention bias, sinks, norms) are not in the call
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
    """GroupQueryAttention(MatMulNBits(x, …), , , past…)  =>  QkvAttention(x, …, past…)

    For packed queries, keys and values that nothing else reads, with rotation inside the attention. MatMul
    and MatMulBias likewise; `projection` says which ("nbits", "dense", "dense_bias").
    """
    fused = 0
    for attention in nodes(graph, "GroupQueryAttention"):
        projection = _projection(graph, attention)
        if projection is None:
            continue
        kind, weights = _weights(projection)
        attrs: dict[str, object] = dict.fromkeys(NBITS_ATTRS, 0)
        attrs.update({name: int(projection.attrs.get(name, 0)) for name in NBITS_ATTRS if kind == "nbits"})
        attrs.update({name: attention.attrs.get(name, DEFAULTS.get(name)) for name in GQA_ATTRS})
        inputs = [
            projection.inputs[0],
            *weights,
            *(operand(attention, i) for i in range(3, LAST_FUSED_INPUT + 1)),
        ]
        replaced, outputs = [projection, attention], list(attention.outputs)
        call(graph, "QkvAttention", attention.name, inputs, outputs, replaced, projection=kind, **attrs)
        fused += 1
    return fused


def _projection(graph: gs.Graph, attention: gs.Node) -> gs.Node | None:
    if operand(attention, 1) is not None or operand(attention, 2) is not None:
        return None
    if attention.attrs.get("do_rotary", 0) != 1:
        return None
    if any(
        operand(attention, index) is not None for index in range(LAST_FUSED_INPUT + 1, len(attention.inputs))
    ):
        return None
    if any(operand(attention, index) is None for index in range(3, LAST_FUSED_INPUT + 1)):
        return None
    strange = [
        name
        for name, value in attention.attrs.items()
        if name not in (*GQA_ATTRS, *UNUSED) and value not in HARMLESS.get(name, ())
    ]
    if strange or len(attention.outputs) != 3:
        log.info("%s is not fused: attributes %s", label(attention), strange)
        return None
    projection = producer(attention.inputs[0], "MatMulNBits", "MatMul", "MatMulBias")
    if projection is None or sole_reader(graph, attention.inputs[0]) is not attention:
        return None
    if not is_constant(projection.inputs[1]):
        return None
    if projection.op == "MatMulNBits" and operand(projection, GROUP_INDEX) is not None:
        return None
    return projection


def _weights(projection: gs.Node) -> tuple[str, list[gs.Tensor | None]]:
    """(kind, [weight, scales, zero points, bias])"""
    weight = projection.inputs[1]
    if projection.op == "MatMulNBits":
        return "nbits", [weight, *(operand(projection, index) for index in (SCALES, ZERO_POINTS, BIAS))]
    if projection.op == "MatMul":
        return "dense", [weight, None, None, None]
    return "dense_bias", [weight, None, None, projection.inputs[2]]
