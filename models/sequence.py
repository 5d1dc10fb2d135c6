"""The subgraph from `attention_mask` to GroupQueryAttention's `seqlens_k` and `total_sequence_length`.

    plain    ReduceSum → Sub 1 → Cast = seqlens_k      Shape → Gather 1 → Cast = total
    graph    Cast → ReduceSum → { Sub 1 = seqlens_k, ReduceMax = total }
    mobius   ReduceSum → { Sub 1 → Cast = seqlens_k, Gather 0 → Cast = total }

With LongRoPE in its `If` form the int64 length is needed first, to choose between the caches.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto

from .config import DecoderConfig, LongRope, MaskForm, Precision
from .graph import BOOL, I32, I64, GraphWriter, constant_node, value_info
from .rope import Caches, long_rope_caches

MASK = "/model/attn_mask_reformat/attn_mask_subgraph"
ROPE = "/model/rope_caches_subgraph"
INT32 = {"to": TensorProto.INT32}


def sequence_lengths(writer: GraphWriter, config: DecoderConfig, io: np.dtype) -> tuple[str, str]:
    """Append the subgraph; return the names of seqlens_k (i32 [batch]) and total_sequence_length (i32)."""
    if config.mask is MaskForm.GRAPH:
        return graph_form(writer)
    total = ""
    if isinstance(config.rope, LongRope):
        # the constant comes first in the exporter's file, before the length that it is compared with
        limit = writer.constant(config.rope.original_positions)
        total = int64_total(writer, config.mask)
        long_rope_switch(writer, config, total, limit, io)
    sums = mask_sums(writer)
    less = writer.node("Sub", [sums, writer.constant([1])], f"{MASK}/Sub", I64, ["batch_size"])
    seqlens_k = writer.node("Cast", [less], f"{MASK}/Sub/Cast", I32, ["batch_size"], attributes=INT32)
    total = total or int64_total(writer, config.mask)
    return seqlens_k, writer.node("Cast", [total], f"{MASK}/Gather/Cast", I32, None, attributes=INT32)


def mask_sums(writer: GraphWriter) -> str:
    """int64 [batch]: the mask's row sums, made at first use."""
    output = f"{MASK}/ReduceSum/output_0"
    if not writer.has_value(output):
        axes = writer.constant([1])
        inputs = ["attention_mask", axes]
        writer.node("ReduceSum", inputs, f"{MASK}/ReduceSum", I64, ["batch_size"], attributes={"keepdims": 0})
    return output


def int64_total(writer: GraphWriter, mask: MaskForm) -> str:
    """int64 scalar: the mask's width (plain), or its first row's sum (mobius)."""
    if mask is MaskForm.PLAIN:
        source = writer.node("Shape", ["attention_mask"], f"{MASK}/Shape", I64, [2])
        index = writer.constant(1)
    else:
        source, index = mask_sums(writer), writer.constant(0)
    return writer.node("Gather", [source, index], f"{MASK}/Gather", I64, [], attributes={"axis": 0})


def graph_form(writer: GraphWriter) -> tuple[str, str]:
    shape = ["batch_size", "total_sequence_length"]
    mask = writer.node("Cast", ["attention_mask"], f"{MASK}/Cast", I32, shape, attributes=INT32)
    keep = {"keepdims": 0}
    inputs = [mask, writer.constant([1])]
    sums = writer.node("ReduceSum", inputs, f"{MASK}/ReduceSum", I32, ["batch_size"], attributes=keep)
    seqlens_k = writer.node("Sub", [sums, writer.constant([1], I32)], f"{MASK}/Sub", I32, ["batch_size"])
    return seqlens_k, writer.node("ReduceMax", [sums], f"{MASK}/ReduceMax", I32, [], attributes=keep)


def long_rope_switch(
    writer: GraphWriter, config: DecoderConfig, total: str, limit: str, io: np.dtype
) -> None:
    """total > original_positions ? long caches : short caches, each branch two constants."""
    longer = writer.node("Greater", [total, limit], f"{ROPE}/Greater", BOOL, [])
    short, long = long_rope_caches(config, io)
    branches = {"then_branch": branch("large", long), "else_branch": branch("small", short)}
    if config.precision is Precision.INT4:  # the quantiser rebuilds the node with sorted attributes
        branches = dict(sorted(branches.items()))
    writer.raw_node("If", [longer], ["cos_cache", "sin_cache"], f"{ROPE}/If", attributes=branches)
    for name in ("cos_cache", "sin_cache"):
        writer.value(name, io, ["max_sequence_length", "head_dim / 2"])


def branch(size: str, caches: Caches) -> GraphProto:
    graph = GraphProto(name=f"{size}_rope_caches_graph")
    for kind, values in zip(("cos_cache", "sin_cache"), caches, strict=True):
        graph.node.append(constant_node(f"{kind}_{size}", f"/{size}/{kind}/Constant", values))
        graph.output.append(value_info(f"{kind}_{size}", values.dtype, values.shape))
    return graph
