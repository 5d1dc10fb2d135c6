"""What follows a dot product: gates, partial maxima, rotary embedding and the KV append."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from gpu import ALL_TARGETS, GPU_TARGETS
from linear_cases import (
    FORMS,
    TOLERANCE,
    activations,
    expect_close,
    make,
    run,
    run_gemm,
    run_gemv,
    words,
)
from webgpu_compile.compiler.lowering import linear as lowering
from webgpu_compile.compiler.lowering import linear_cpu
from webgpu_compile.compiler.lowering.linear import Argmax, Gated, GemvShape, Residual, RopeAppend
from webgpu_compile.compiler.lowering.quantize import quantized_tensor
from webgpu_compile.compiler.program import DType
from webgpu_compile.compiler.target import TARGETS, Target

PORTABLE = TARGETS["portable"]
SUBGROUPS = TARGETS["subgroups"]
SOFTWARE = TARGETS["software"]
EVERY_TARGET = pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.name)
EVERY_GPU = pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)


GATES = {
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}


@EVERY_TARGET
@pytest.mark.parametrize("act", GATES)
@pytest.mark.parametrize("form", ["q4", "q4 int8 zero points, bias", "f16"])
@pytest.mark.parametrize("rows", [1, 7, 19])
def test_gated(rows: int, form: str, act: str, target: Target) -> None:
    """Gates of both signs and of magnitude up to hundreds, where exp and tanh overflow.

    Tolerance: the gate's derivative is below 1.2, so an error e of both dot products grows to about
    e · (|up| + |gate|); erf's approximation adds 2e-7 · |gate|.
    """
    rng = np.random.default_rng(5)
    case = make(rng, k=96, n=37, gated=True, **FORMS[form])
    x, exact = activations(rng, case, rows)
    if case.linear.activation == "f32":
        x[0] *= 100
        exact = x.astype(np.float64)
    got = (run_gemv if rows == 1 else run_gemm)(case, target, x, epilogue=Gated(act))
    products = exact @ case.w.T + case.bias
    with np.errstate(over="ignore"):
        want = GATES[act](products[:, :37]) * products[:, 37:]
    error = TOLERANCE * (np.abs(exact) @ np.abs(case.w).T + np.abs(case.bias))
    bound = error[:, :37] * 1.2 * np.abs(products[:, 37:]) + (error[:, 37:] + 1e-6) * np.abs(products[:, :37])
    bound += 4e-7 * np.abs(products[:, :37] * products[:, 37:]) + 1e-6
    assert (np.abs(got - want) <= bound).all(), np.max(np.abs(got - want) / bound)


@EVERY_TARGET
def test_argmax_partials(target: Target) -> None:
    """The greatest of all partials is NumPy's argmax, also when equal logits lie in different workgroups."""
    rng = np.random.default_rng(6)
    case = make(rng, "q4", 64, 203)
    x, exact = activations(rng, case)
    best = int(np.argmax(exact @ case.w.T))
    # Rows 10 and 150 equal to the best one: the lowest index must win.
    for row in (10, 150):
        case.weights[row], case.w[row] = case.weights[best], case.w[best]
        scales = case.params.view(np.float16).reshape(203, 2).copy()
        scales[row] = scales[best]
        case.params = scales.view(np.uint32).reshape(-1)
    shape = GemvShape(32, 16)
    if target.cpu:
        n_rows, count = 4, linear_cpu.n_partials(case.linear)
        [kernel] = linear_cpu.product(case.linear, "x", "y", 1, nodes=(), epilogue=Argmax("v", "i"))
    else:
        n_rows, count = shape.tile_rows, lowering.n_partials(case.linear, shape)
        [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=Argmax("v", "i"), shape=shape)
    got = run(
        kernel,
        target,
        case.arrays(
            x=x,
            sequence=words(),
            y=np.full((1, 203), np.nan, np.float32),
            partial_values=np.full(count, np.nan, np.float32),
            partial_indices=np.full(count, 999, np.uint32),
        ),
    )
    expect_close(got["y"], case, exact)
    logits = got["y"][0]
    for group, (value, index) in enumerate(zip(got["partial_values"], got["partial_indices"], strict=True)):
        mine = logits[n_rows * group : n_rows * (group + 1)]
        assert index == n_rows * group + np.argmax(mine)
        assert value == mine.max()
    order = np.lexsort((got["partial_indices"], -got["partial_values"]))
    assert got["partial_indices"][order[0]] == min(best, 10)


def test_argmax_partials_are_finite() -> None:
    case = make(np.random.default_rng(7), "f32", 4, 10)
    case.weights[:] = 0
    case.weights[:, 0] = [*[-np.inf] * 4, -np.inf, -1, np.inf, 0, np.nan, 2]
    shape = GemvShape(32, 32)
    greatest = np.finfo(np.float32).max
    tiled = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=Argmax("v", "i"), shape=shape)
    alone = linear_cpu.product(case.linear, "x", "y", 1, nodes=(), epilogue=Argmax("v", "i"))
    values, indices = [-greatest, greatest, greatest], [0, 6, 8]
    for [kernel], target in ((tiled, PORTABLE), (alone, SOFTWARE)):
        got = run(
            kernel,
            target,
            case.arrays(
                x=np.array([[1, 0, 0, 0]], np.float32),
                sequence=words(),
                y=np.zeros((1, 10), np.float32),
                partial_values=np.zeros(len(values), np.float32),
                partial_indices=np.zeros(len(values), np.uint32),
            ),
        )
        assert got["partial_values"].tolist() == values
        assert got["partial_indices"].tolist() == indices


@pytest.mark.parametrize("n", [4095, 4097, 9001])
def test_a_thread_of_a_long_head_takes_several_rows(n: int) -> None:
    """Around a thousand pairs are left, and the greatest of them is the greatest of all."""
    rng = np.random.default_rng(n)
    case = make(rng, "q4", 32, n, activation="int8")
    x, exact = activations(rng, case)
    count = linear_cpu.n_partials(case.linear)
    assert 512 <= count <= 1024
    [kernel] = linear_cpu.product(case.linear, "x", "y", 1, nodes=(), epilogue=Argmax("v", "i"))
    got = run(
        kernel,
        SOFTWARE,
        case.arrays(
            x=x,
            sequence=words(),
            y=np.full((1, n), np.nan, np.float32),
            partial_values=np.full(count, np.nan, np.float32),
            partial_indices=np.full(count, n, np.uint32),
        ),
    )
    expect_close(got["y"], case, exact)
    order = np.lexsort((got["partial_indices"], -got["partial_values"]))
    assert got["partial_indices"][order[0]] == np.argmax(got["y"])


def rotated(v: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Rotary embedding of [heads, head_size] at one position; cos and sin [rotary_dim / 2]."""
    half = len(cos)
    out = v.copy()
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    out[:, first] = v[:, first] * cos - v[:, second] * sin
    out[:, second] = v[:, second] * cos + v[:, first] * sin
    return out


ROPES = {
    "half": {"rotary_dim": 16},
    "interleaved": {"rotary_dim": 16, "interleaved": True},
    "partial": {"rotary_dim": 12, "table_dtype": DType.F32},
    "partial interleaved": {"rotary_dim": 4, "interleaved": True},
    "smallest half": {"rotary_dim": 4},
    "none": {"rotary_dim": 0},
    "long": {"rotary_dim": 16, "long_threshold": 8, "long_row": 8},
}


@EVERY_GPU
@pytest.mark.parametrize("cache_dtype", [DType.F16, DType.F32])
@pytest.mark.parametrize("activation", ["f32", "int8"])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("call_length", [8, 9])
def test_rope_append(
    rope: dict, activation: str, cache_dtype: DType, call_length: int, target: Target
) -> None:
    """q, k and v of one position; everything else in the caches stays. f16 caches round once: 2^-11."""
    rng = np.random.default_rng(9)
    heads, kv_heads, size, capacity, position = 4, 2, 16, 12, 7
    case = make(
        rng, "q4", 64, (heads + 2 * kv_heads) * size, bias=True, zero_points=True, activation=activation
    )
    x, exact = activations(rng, case)
    half, rows = rope["rotary_dim"] // 2, 8 + rope.get("long_row", 0) * 2
    angle = rng.uniform(0, 6, (rows, half))
    table = np.concatenate([np.cos(angle), np.sin(angle)])
    table = table.astype(np.float32 if rope.get("table_dtype") is DType.F32 else np.float16)
    epilogue = RopeAppend(
        heads, kv_heads, size, capacity, "k", "v", cache_dtype,
        rope="rope" if half else None, table_rows=rows, **rope,
    )  # fmt: skip
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=epilogue)
    empty = rng.normal(0, 1, (2, kv_heads, capacity, size))
    empty = empty.astype(np.float16 if cache_dtype is DType.F16 else np.float32)
    arrays = case.arrays(
        x=x,
        y=np.full((heads, size), np.nan, np.float32),
        k_cache=empty[0],
        v_cache=empty[1],
        rope=table,
        sequence=words(past_length=position, call_length=call_length),
    )
    got = run(kernel, target, arrays)
    qkv = (exact @ case.w.T + case.bias).reshape(-1, size)
    row = position + (rope.get("long_row", 0) if call_length > rope.get("long_threshold", 99) else 0)
    cos, sin = table[row].astype(np.float64), table[rows + row].astype(np.float64)
    interleaved = rope.get("interleaved", False)
    q, k = (rotated(part, cos, sin, interleaved) for part in (qkv[:heads], qkv[heads:-kv_heads]))
    magnitude = (np.abs(exact) @ np.abs(case.w).T + np.abs(case.bias)).max()
    atol, rtol = 2 * TOLERANCE * magnitude, 2.0**-11 if cache_dtype is DType.F16 else 0
    np.testing.assert_allclose(got["y"], q, rtol=0, atol=atol)
    np.testing.assert_allclose(got["k_cache"][:, position], k, rtol=rtol, atol=atol)
    np.testing.assert_allclose(got["v_cache"][:, position], qkv[-kv_heads:], rtol=rtol, atol=atol)
    others = np.arange(capacity) != position
    assert np.array_equal(got["k_cache"][:, others], empty[0][:, others])
    assert np.array_equal(got["v_cache"][:, others], empty[1][:, others])


def test_rope_append_to_a_full_cache_writes_nothing() -> None:
    rng = np.random.default_rng(10)
    case = make(rng, "f16", 32, 5 * 16)
    epilogue = RopeAppend(1, 2, 16, 6, "k", "v", rope="rope", rotary_dim=16, table_rows=6)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=epilogue)
    cache = rng.normal(0, 1, (2, 6, 16)).astype(np.float16)
    arrays = case.arrays(
        x=np.ones((1, 32), np.float32),
        y=np.zeros((1, 16), np.float32),
        k_cache=cache,
        v_cache=cache,
        rope=np.ones((12, 8), np.float16),
        sequence=words(past_length=6),
    )
    got = run(kernel, PORTABLE, arrays)
    assert np.array_equal(got["k_cache"], cache)
    assert np.array_equal(got["v_cache"], cache)


def int8_values(tensor: np.ndarray, k: int, block: int) -> np.ndarray:
    """What a row of int8 activations stands for."""
    blocks, n_words = k // block, k // 4
    q = tensor[0, :n_words].copy().view(np.int8).reshape(-1, 2, 4).transpose(0, 2, 1).reshape(blocks, block)
    scales = tensor[0, n_words : n_words + blocks].copy().view(np.float32)
    return (q * scales[:, None].astype(np.float64)).reshape(k)


@EVERY_GPU
@pytest.mark.parametrize(("block", "y_block"), [(16, 16), (32, 16), (32, 32)])
@pytest.mark.parametrize("n", [96, 256])
def test_residual_and_the_norm_that_follows(n: int, block: int, y_block: int, target: Target) -> None:
    """One GEMV writes the residual stream and its norm but for a factor, the next one applies it.

    int8 outputs are within half a step of what they stand for; the second GEMV is compared with its own
    input, which leaves the rounding of f32.
    """
    rng = np.random.default_rng(n)
    case = make(rng, "q4", 160, n, block=block, bias=True, activation="int8")
    x, exact = activations(rng, case)
    residual = rng.normal(0, 3, (1, n)).astype(np.float32)
    weight = rng.normal(1, 0.2, n).astype(np.float16)
    tensor = quantized_tensor("y", 1, n, y_block, squares=True)
    epilogue = Residual("residual", "norm_weight", DType.F16, y_block, "sum_out")
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=epilogue)
    got = run(
        kernel,
        target,
        case.arrays(
            x=x,
            y=np.full(tensor.shape, 0x7FC00000, np.uint32),
            residual=residual,
            norm_weight=weight,
            sum_out=np.full((1, n), np.nan, np.float32),
            sequence=words(),
        ),
    )
    total = residual + exact @ case.w.T + case.bias
    np.testing.assert_allclose(got["sum_out"], total, rtol=0, atol=1e-4)
    want = (total * weight)[0]
    values = int8_values(got["y"], n, y_block)
    steps = np.repeat(np.abs(want.reshape(-1, y_block)).max(1) / 127, y_block)
    assert (np.abs(values - want) <= 0.501 * steps).all()

    epsilon = 0.25
    factor = 1 / np.sqrt((total**2).mean() + epsilon)
    after = make(rng, "q4", n, 48, block=block, activation="int8")
    reader = replace(after.linear, x_block=y_block)
    [kernel] = lowering.gemv(reader, "x", "y", nodes=(), x_epsilon=epsilon)
    y = np.full((1, 48), np.nan, np.float32)
    got = run(kernel, target, after.arrays(x=got["y"], y=y, sequence=words()))
    expect_close(got["y"], after, values[None] * factor, tolerance=5e-6)


@EVERY_GPU
@pytest.mark.parametrize(("block", "y_block"), [(16, 16), (64, 16), (64, 32)])
def test_gated_int8(block: int, y_block: int, target: Target) -> None:
    """The gate's outputs as the next layer reads them, within half a step."""
    rng = np.random.default_rng(13)
    case = make(rng, "q4", 96, 128, block=block, gated=True, activation="int8")
    x, exact = activations(rng, case)
    tensor = quantized_tensor("y", 1, 128, y_block)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=Gated("silu", y_block))
    y = np.zeros(tensor.shape, np.uint32)
    got = run(kernel, target, case.arrays(x=x, y=y, sequence=words()))["y"]
    products = (exact @ case.w.T)[0]
    want = GATES["silu"](products[:128]) * products[128:]
    steps = np.repeat(np.abs(want.reshape(-1, y_block)).max(1) / 127, y_block)
    assert (np.abs(int8_values(got, 128, y_block) - want) <= 0.501 * steps + 1e-6).all()
