"""The conventions of com.microsoft GroupQueryAttention, against ONNX Runtime's CPU kernel.

What a window, a softcap, a sink or a partial rotary dimension mean is not in any specification; ONNX
Runtime's answer is what models were trained and exported for.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from attention_cases import NUMPY, lower_append, run, sequence
from gpu import ALL_TARGETS
from onnx import TensorProto, helper
from webgpu_compile.compiler.lowering.attention import Attention, decode_attention
from webgpu_compile.compiler.lowering.prefill_attention import prefill_attention
from webgpu_compile.compiler.program import DType

ONNX = {DType.F16: TensorProto.FLOAT16, DType.F32: TensorProto.FLOAT}
TOLERANCE = {DType.F32: 3e-6, DType.F16: 3e-3}
"""f16: ONNX Runtime rounds q, k, the scores' inputs and the output to f16; here q and scores are f32."""

BASE = Attention(4, 2, 32, 128, DType.F32, rotary_dim=32, table_rows=128, table_dtype=DType.F32)


def case(**changes: object) -> Attention:
    fields = {name: getattr(BASE, name) for name in BASE.__dataclass_fields__}
    return Attention(**(fields | changes))  # type: ignore[arg-type]


CASES = {
    "plain": BASE,
    "f16": case(cache_dtype=DType.F16, table_dtype=DType.F16),
    "window 1": case(window=1),
    "window 7": case(window=7),
    "window 64": case(window=64),
    "scale, softcap": case(scale=0.4, softcap=1.5),
    "head sinks": case(head_sink=DType.F32),
    "head sinks f16": case(head_sink=DType.F16, cache_dtype=DType.F16, table_dtype=DType.F16),
    "smooth": case(smooth_softmax=True),
    "window, sinks, softcap": case(window=9, head_sink=DType.F32, softcap=2.0),
    "partial rotary": case(rotary_dim=16, head_size=48),
    "interleaved": case(interleaved=True),
    "interleaved, partial": case(interleaved=True, rotary_dim=16),
    "no rotary": case(rotary_dim=0, table_rows=0, heads=3, kv_heads=1),
}


def onnx_runtime(attention: Attention, x: dict[str, np.ndarray], total: int) -> list[np.ndarray]:
    """[output, present key, present value] of one GroupQueryAttention node with packed qkv."""
    dtype = ONNX[attention.cache_dtype]
    names = ["qkv", "", "", "past_k", "past_v", "seqlens_k", "total"]
    names += ["cos", "sin"] if attention.rotary_dim else ["", ""]
    names += ["", "", "head_sink"] if attention.head_sink else []
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "k", "v"],
        domain="com.microsoft",
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=attention.scale,
        softcap=attention.softcap,
        local_window_size=attention.window,
        smooth_softmax=int(attention.smooth_softmax),
        do_rotary=int(bool(attention.rotary_dim)),
        rotary_interleaved=int(attention.interleaved),
    )
    feeds = {name: x[name] for name in names if name and name not in ("seqlens_k", "total")}
    inputs = [helper.make_tensor_value_info(name, dtype, value.shape) for name, value in feeds.items()]
    feeds |= {"seqlens_k": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
    inputs += [helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1])]
    inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [])]
    outputs = [helper.make_tensor_value_info(name, dtype, None) for name in ("y", "k", "v")]
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("attention", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("past", "rows"), [(0, 12), (70, 1), (69, 12)], ids=["prompt", "decode", "append"])
def test_same_as_onnx_runtime(attention: Attention, past: int, rows: int) -> None:
    rng = np.random.default_rng(past + rows)
    heads, kv, size, capacity = attention.heads, attention.kv_heads, attention.head_size, attention.capacity
    dtype = NUMPY[attention.cache_dtype]
    qkv = (1.5 * rng.standard_normal((1, rows, (heads + 2 * kv) * size))).astype(dtype)
    past_k, past_v = (rng.standard_normal((1, kv, past, size)).astype(dtype) for _ in range(2))
    angles = rng.uniform(0, 6, (attention.table_rows, attention.rotary_dim // 2))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    sink = rng.standard_normal(heads).astype(dtype)
    feeds = {"qkv": qkv, "past_k": past_k, "past_v": past_v, "cos": cos, "sin": sin, "head_sink": sink}
    expected, present_k, present_v = onnx_runtime(attention, feeds, past + rows)

    caches = {name: np.full((kv, capacity, size), np.nan, dtype) for name in ("k_cache", "v_cache")}
    caches["k_cache"][:, :past], caches["v_cache"][:, :past] = past_k[0], past_v[0]
    arrays = {"qkv": qkv[0].astype(np.float32), "rope": np.concatenate([cos, sin]), "head_sink": sink}
    arrays |= {
        "q": np.zeros((rows, heads, size), np.float32),
        "y": np.zeros((rows, heads * size), np.float32),
    }
    arrays |= {**caches, "sequence": sequence(past, rows)}
    names = {
        "q": "q",
        "k_cache": "k_cache",
        "v_cache": "v_cache",
        "out": "y",
        "name": "attention",
        "nodes": (),
    }
    if attention.head_sink:
        names["head_sink"] = "head_sink"
    target = ALL_TARGETS[0]
    arrays = run(lower_append(attention, rows), target, arrays)
    if rows == 1:
        arrays = run(decode_attention(attention, **names), target, arrays)  # type: ignore[arg-type]
    else:
        arrays = run(prefill_attention(attention, rows, **names), target, arrays)  # type: ignore[arg-type]

    tolerance = TOLERANCE[attention.cache_dtype]
    np.testing.assert_allclose(arrays["y"], expected[0].astype(np.float64), atol=tolerance, rtol=0)
    for got, want in ((arrays["k_cache"], present_k), (arrays["v_cache"], present_v)):
        np.testing.assert_allclose(got[:, : past + rows], want[0], atol=tolerance, rtol=0)
