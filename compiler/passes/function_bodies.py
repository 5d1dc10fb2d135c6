"""What calls mean: the bodies of our functions in ONNX text, by operator and overload."""

from __future__ import annotations

INT8_BLOCK = "int8_block"
"""The attribute of calls that write their first output as int8, in blocks of so many values; 0 of those that
could. To ONNX Runtime int8 activations are the values they were: its MatMulNBits rounds them itself."""

OVERLOADED = {
    "GatedMatMulNBits": "activation",
    "GatedMatMul": "activation",
    "QkvAttention": "projection",
    "ArgMaxMatMul": "projection",
    "QuantizedNorm": "norm",
}
"""The attribute that picks the body of an operator with several."""

MODEL_CALLS = (
    "GatedMatMul",
    "GatedMatMulNBits",
    "GatherColumns",
    "GatherPaddedRows",
    "LastToken",
    "MatMulBias",
)
"""Calls in the graph of a model; the others are in graphs of programs, and in their dumps."""

_NBITS = "K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size, "
_NBITS += "accuracy_level: int = @accuracy_level"
_GQA = (
    "num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale, "
    "local_window_size: int = @local_window_size, softcap: float = @softcap, do_rotary: int = @do_rotary, "
    "rotary_interleaved: int = @rotary_interleaved"
)
NBITS_ATTRS = ("K", "N", "bits", "block_size", "accuracy_level")
GQA_ATTRS = (
    "num_heads",
    "kv_num_heads",
    "scale",
    "local_window_size",
    "softcap",
    "do_rotary",
    "rotary_interleaved",
)
ACTIVATIONS = {
    "silu": "s = Sigmoid(g)  a = Mul(g, s)",
    "gelu": 'a = Gelu <approximate = "none"> (g)',
    "gelu_tanh": 'a = Gelu <approximate = "tanh"> (g)',
}
_PROJECTIONS = {
    "nbits": f"p = com.microsoft.MatMulNBits <{_NBITS}> (x, weight, scales, zero_points, , bias)",
    "dense": "p = MatMul(x, weight)",
    "dense_bias": "m = MatMul(x, weight)  p = Add(m, bias)",
}
_LENGTHS = "past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache"
_GATED_INPUTS = "x, gate, gate_scales, gate_zero_points, gate_bias, up, up_scales, up_zero_points, up_bias"
_PROJECTION_INPUTS = "x, weight, scales, zero_points, bias"
_QKV_ATTRS = ", ".join((*NBITS_ATTRS, *GQA_ATTRS, "projection", INT8_BLOCK, "sources"))

BODIES: dict[tuple[str, str], str] = {
    ("MatMulBias", ""): """
        MatMulBias <sources> (x, weight, bias) => (y) { m = MatMul(x, weight)  y = Add(m, bias) }""",
    ("LastToken", ""): """
        LastToken <sources> (x) => (y) {
            last = Constant <value_ints: ints = [-1]> ()
            y = Gather <axis = 1> (x, last)
        }""",
    ("GatherColumns", ""): """
        GatherColumns <sources> (table, indices) => (y) {
            rows = Transpose <perm = [1, 0]> (table)
            y = Gather <axis = 0> (rows, indices)
        }""",
    ("GatherPaddedRows", ""): """
        GatherPaddedRows <bits, block_size, size, sources> (table, indices, scales, zero_points) => (y) {
            rows = com.microsoft.GatherBlockQuantized <
                bits: int = @bits, block_size: int = @block_size, gather_axis = 0, quantize_axis = 1
            > (table, indices, scales, zero_points)
            start = Constant <value_ints: ints = [0]> ()
            end = Constant <value_ints: ints = @size> ()
            axis = Constant <value_ints: ints = [-1]> ()
            y = Slice(rows, start, end, axis)
        }""",
    **{
        ("GatedMatMulNBits", name): f"""
        GatedMatMulNBits <{", ".join(NBITS_ATTRS)}, activation, {INT8_BLOCK}, sources> ({_GATED_INPUTS})
            => (y) {{
            g = com.microsoft.MatMulNBits <{_NBITS}> (x, gate, gate_scales, gate_zero_points, , gate_bias)
            u = com.microsoft.MatMulNBits <{_NBITS}> (x, up, up_scales, up_zero_points, , up_bias)
            {activation}
            y = Mul(a, u)
        }}"""
        for name, activation in ACTIVATIONS.items()
    },
    **{
        ("GatedMatMul", name): f"""
        GatedMatMul <activation, sources> (x, gate, up) => (y) {{
            g = MatMul(x, gate)
            u = MatMul(x, up)
            {activation}
            y = Mul(a, u)
        }}"""
        for name, activation in ACTIVATIONS.items()
    },
    **{
        ("QkvAttention", name): f"""
        QkvAttention <{_QKV_ATTRS}> ({_PROJECTION_INPUTS}, {_LENGTHS}) => (y, present_key, present_value) {{
            {projection}
            y, present_key, present_value = com.microsoft.GroupQueryAttention <{_GQA}> (p, , , {_LENGTHS})
        }}"""
        for name, projection in _PROJECTIONS.items()
    },
    ("QuantizedAttention", ""): f"""
        QuantizedAttention <{", ".join(GQA_ATTRS)}, {INT8_BLOCK}, sources> (q, k, v, {_LENGTHS})
            => (y, present_key, present_value) {{
            y, present_key, present_value = com.microsoft.GroupQueryAttention <{_GQA}> (q, k, v, {_LENGTHS})
        }}""",
    ("QuantizeActivations", ""): f"""
        QuantizeActivations <{INT8_BLOCK}, sources> (x) => (y) {{ y = Identity(x) }}""",
    # ONNX Runtime looks for the attribute stash_type of a norm in a function without asking if it is there.
    **{
        ("QuantizedNorm", norm): f"""
        QuantizedNorm <axis, epsilon, norm, {INT8_BLOCK}, sources> (x, weight) => (y, y_float) {{
            n = {norm} <axis: int = @axis, epsilon: float = @epsilon, stash_type = 1> (x, weight)
            y = Identity(n)
            y_float = Identity(n)
        }}"""
        for norm in ("SimplifiedLayerNormalization", "RMSNormalization")
    },
    ("QuantizedSkipNorm", ""): f"""
        QuantizedSkipNorm <epsilon, {INT8_BLOCK}, sources> (x, skip, weight, bias) => (y, y_float, sum) {{
            n, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization
                <epsilon: float = @epsilon> (x, skip, weight, bias)
            y = Identity(n)
            y_float = Identity(n)
        }}""",
    ("ResidualNormMatMulNBits", ""): f"""
        ResidualNormMatMulNBits <{", ".join(NBITS_ATTRS)}, epsilon, {INT8_BLOCK}, sources>
            ({_PROJECTION_INPUTS}, residual, norm_weight) => (y, sum) {{
            {_PROJECTIONS["nbits"]}
            y, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization
                <epsilon: float = @epsilon> (p, residual, norm_weight)
        }}""",
    ("ArgMaxParts", ""): """
        ArgMaxParts <sources> (x) => (values, indices) {
            one = Constant <value_ints: ints = [1]> ()
            values, wide = TopK (x, one)
            indices = Cast <to = 6> (wide)
        }""",
    **{
        ("ArgMaxMatMul", name): f"""
        ArgMaxMatMul <{", ".join(NBITS_ATTRS)}, projection, sources> ({_PROJECTION_INPUTS})
            => (y, values, indices) {{
            {projection}
            y = Identity(p)
            one = Constant <value_ints: ints = [1]> ()
            values, wide = TopK (y, one)
            indices = Cast <to = 6> (wide)
        }}"""
        for name, projection in _PROJECTIONS.items()
    },
}
