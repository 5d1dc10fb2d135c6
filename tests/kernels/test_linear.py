"""Linear layers against float64 NumPy on the dequantised weights, and int8 against exact integers.

Tolerances are relative to the sum of |w · x| per output, which is what rounding grows with. Float: every
product and addition rounds once, in a tree of a few hundred terms, so 2e-6 (about 16 ulp of f32) is ample;
a wrong nibble, scale or column is 1e-3 and more. int8: the integers are exact, only scales and their sum
round: 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from gpu import ALL_TARGETS, run_kernel
from webgpu_compile.compiler.lowering import linear as lowering
from webgpu_compile.compiler.lowering.linear import Argmax, Gated, GemvShape, Linear, RopeAppend, Segment
from webgpu_compile.compiler.program import DType, Kernel
from webgpu_compile.compiler.sequence import N_WORDS, WORDS
from webgpu_compile.compiler.target import SPEC_LIMITS, TARGETS, Target

PORTABLE = TARGETS["portable"]
SUBGROUPS = TARGETS["subgroups"]
EVERY_TARGET = pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.name)
TOLERANCE = 2e-6


@dataclass
class Case:
    """A `Linear` of one segment with its bytes, and the same matrix in float64."""

    linear: Linear
    weights: np.ndarray
    params: np.ndarray
    w: np.ndarray  # [matrix_rows, k]
    bias: np.ndarray  # [matrix_rows]

    def arrays(self, **more: np.ndarray) -> dict[str, np.ndarray]:
        return {"weights": self.weights, "params": self.params, **more}


def section(array: np.ndarray) -> bytes:
    return array.tobytes() + bytes(-array.nbytes % 4)


def make(
    rng: np.random.Generator,
    fmt: str,
    k: int,
    n: int,
    *,
    block: int = 32,
    zero_points: bool = False,
    bias: bool = False,
    scale_dtype: DType = DType.F16,
    bias_dtype: DType = DType.F16,
    gated: bool = False,
    activation: str = "f32",
) -> Case:
    rows = n * (2 if gated else 1)
    linear = Linear(
        fmt,
        k,
        n,
        (),
        block if fmt == "q4" else 0,
        scale_dtype,
        zero_points,
        bias,
        bias_dtype,
        gated,
        activation,
    )
    numpy_type = {DType.F16: np.float16, DType.F32: np.float32}
    params = b""
    if fmt == "q4":
        blocks = linear.n_blocks
        q = rng.integers(0, 16, (rows, blocks, block), np.uint8)  # also behind k, where x counts as 0
        weights = q[..., ::2] | q[..., 1::2] << 4
        scales = rng.normal(0, 0.1, (rows, blocks)).astype(numpy_type[scale_dtype])
        zeros = np.full((rows, blocks), 8, np.uint8)
        params = section(scales)
        if zero_points:
            zeros = rng.integers(0, 16, (rows, blocks), np.uint8)
            even = np.pad(zeros, ((0, 0), (0, blocks % 2)))
            params += section(even[:, ::2] | even[:, 1::2] << 4)
        w = (q.astype(np.float64) - zeros[..., None]) * scales[..., None].astype(np.float64)
        w = w.reshape(rows, -1)[:, :k]
    else:
        weights = np.zeros((rows, linear.padded_k), np.float16 if fmt == "f16" else np.float32)
        weights[:, :k] = rng.normal(0, 0.3, (rows, k))
        w = weights[:, :k].astype(np.float64)
    b = np.zeros(rows)
    if bias:
        stored = rng.normal(0, 1, rows).astype(numpy_type[bias_dtype])
        params += section(stored)
        b = stored.astype(np.float64)
    segment = Segment(0, n, "weights", "params" if params else None)
    return Case(replace(linear, segments=(segment,)), weights, np.frombuffer(params, np.uint32), w, b)


def words(**values: int) -> np.ndarray:
    state = np.zeros(N_WORDS, np.uint32)
    for name, value in values.items():
        state[WORDS.index(name)] = value
    return state


def quantized(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """NumPy's own int8 form of x: the tensor's words, and the values that they stand for."""
    rows, k = x.shape
    blocks = -(-k // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(rows, blocks, block)
    scale = np.abs(padded).max(-1) / np.float32(127)
    q = np.rint(padded / np.where(scale == 0, 1, scale)[..., None]).astype(np.int8)
    eights = q.reshape(rows, -1, 4, 2).transpose(0, 1, 3, 2)  # even ones, then odd ones
    packed = np.ascontiguousarray(eights).reshape(rows, -1).view(np.uint32)
    tail = np.zeros((rows, -blocks % 4), np.uint32)
    tensor = np.concatenate([packed, scale.astype(np.float32).view(np.uint32), tail], axis=1)
    assert tensor.shape == lowering.quantized_tensor("x", rows, k, block).shape
    values = q.astype(np.float64) * scale[..., None].astype(np.float64)
    return tensor, values.reshape(rows, -1)[:, :k]


def activations(rng: np.random.Generator, case: Case, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x as the kernel takes it, and in float64."""
    x = rng.normal(0, 1, (rows, case.linear.k)).astype(np.float32)
    if case.linear.activation == "int8":
        return quantized(x, case.linear.chunk)
    return x, x.astype(np.float64)


def expect_close(got: np.ndarray, case: Case, x: np.ndarray, tolerance: float = TOLERANCE) -> None:
    magnitude = np.abs(x) @ np.abs(case.w).T + np.abs(case.bias)
    error = np.abs(got - (x @ case.w.T + case.bias)) / magnitude
    assert error.max() < tolerance, f"relative error {error.max():.2e}"


def run(kernel: Kernel, target: Target, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bind what the kernel binds, within the limits of every WebGPU implementation."""
    assert len(kernel.bindings) <= SPEC_LIMITS["max-storage-buffers-per-shader-stage"]
    assert kernel.workgroup_nbytes <= SPEC_LIMITS["max-compute-workgroup-storage-size"]
    assert np.prod(kernel.workgroup) <= SPEC_LIMITS["max-compute-invocations-per-workgroup"]
    return run_kernel(kernel, target, {b.variable: arrays[b.variable] for b in kernel.bindings})


def run_gemv(case: Case, target: Target, x: np.ndarray, **options: object) -> np.ndarray:
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=("n",), **options)
    y = np.full((1, case.linear.n), np.nan, np.float32)
    return run(kernel, target, case.arrays(x=x, y=y, sequence=words()))["y"]


def run_gemm(
    case: Case, target: Target, x: np.ndarray, length: int | None = None, **options: object
) -> np.ndarray:
    [kernel] = lowering.gemm(case.linear, "x", "y", len(x), nodes=("n",), **options)
    y = np.full((len(x), case.linear.n), np.nan, np.float32)
    state = words(length=len(x) if length is None else length)
    return run(kernel, target, case.arrays(x=x, y=y, sequence=state))["y"]


FORMS = {
    "q4": {"fmt": "q4"},
    "q4 zero points": {"fmt": "q4", "zero_points": True},
    "q4 int8": {"fmt": "q4", "activation": "int8"},
    "q4 int8 zero points, bias": {"fmt": "q4", "activation": "int8", "zero_points": True, "bias": True},
    "f16": {"fmt": "f16"},
    "f16 bias": {"fmt": "f16", "bias": True},
    "f32": {"fmt": "f32"},
    "f32 bias": {"fmt": "f32", "bias": True, "bias_dtype": DType.F32},
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@EVERY_TARGET
@EVERY_FORM
def test_gemv(form: dict, target: Target) -> None:
    rng = np.random.default_rng(1)
    case = make(rng, k=320, n=67, **form)
    x, exact = activations(rng, case, 1)
    expect_close(run_gemv(case, target, x), case, exact)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("activation", ["f32", "int8"])
@pytest.mark.parametrize("k", [1, 48, 354, 1024])
def test_gemv_blocks(block: int, activation: str, k: int) -> None:
    """Blocks that K does not fill, odd numbers of them, and zero points in both nibbles."""
    rng = np.random.default_rng(block + k)
    case = make(
        rng,
        "q4",
        k,
        5,
        block=block,
        zero_points=True,
        scale_dtype=DType.F32,
        activation=activation,
        bias=True,
    )
    x, exact = activations(rng, case, 1)
    expect_close(run_gemv(case, PORTABLE, x), case, exact)


@pytest.mark.parametrize("fmt", ["f16", "f32"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 3), (10, 5), (12, 6), (2049, 9)])
def test_gemv_dense_shapes(fmt: str, k: int, n: int) -> None:
    """K odd, even, a multiple of 4 and not of 8: each has another way to read x."""
    rng = np.random.default_rng(k)
    case = make(rng, fmt, k, n)
    x, exact = activations(rng, case, 1)
    expect_close(run_gemv(case, PORTABLE, x), case, exact)


@EVERY_TARGET
@pytest.mark.parametrize("threads", [32, 64, 128, 256])
@pytest.mark.parametrize("dots", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_gemv_every_shape_of_workgroup(threads: int, dots: int, repeats: int, target: Target) -> None:
    rng = np.random.default_rng(threads)
    case = make(rng, "q4", 1184, 27, bias=True)
    x, exact = activations(rng, case, 1)
    expect_close(run_gemv(case, target, x, shape=GemvShape(threads, dots, repeats)), case, exact)


def test_gemv_more_than_65535_workgroups() -> None:
    rng = np.random.default_rng(2)
    case = make(rng, "q4", 32, 65537)
    x, exact = activations(rng, case, 1)
    got = run_gemv(case, SUBGROUPS, x, shape=GemvShape(32, 1))
    expect_close(got, case, exact)


def test_gemv_does_nothing_after_the_stop() -> None:
    case = make(np.random.default_rng(3), "q4", 64, 8)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=())
    y = np.full((1, 8), 7, np.float32)
    x = np.ones((1, 64), np.float32)
    got = run(kernel, PORTABLE, case.arrays(x=x, y=y, sequence=words(stop=1)))
    assert (got["y"] == 7).all()


@EVERY_TARGET
@EVERY_FORM
@pytest.mark.parametrize("rows", [5, 33, 70])
def test_gemm(form: dict, rows: int, target: Target) -> None:
    """Every size of tile, with edges in rows, columns and K."""
    rng = np.random.default_rng(rows)
    case = make(rng, k=160, n=67, **form)
    x, exact = activations(rng, case, rows)
    expect_close(run_gemm(case, target, x), case, exact)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("activation", ["f32", "int8"])
@pytest.mark.parametrize("k", [1, 48, 354])
def test_gemm_blocks(block: int, activation: str, k: int) -> None:
    rng = np.random.default_rng(block + k)
    case = make(
        rng,
        "q4",
        k,
        70,
        block=block,
        zero_points=True,
        scale_dtype=DType.F32,
        activation=activation,
        bias=True,
    )
    x, exact = activations(rng, case, 3)
    expect_close(run_gemm(case, PORTABLE, x), case, exact)


@pytest.mark.parametrize("fmt", ["f16", "f32"])
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 1, 1), (2, 7, 3), (129, 10, 130), (17, 12, 64)])
def test_gemm_dense_shapes(fmt: str, rows: int, k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    case = make(rng, fmt, k, n)
    x, exact = activations(rng, case, rows)
    expect_close(run_gemm(case, PORTABLE, x), case, exact)


@pytest.mark.parametrize("activation", ["f32", "int8"])
def test_gemm_rows_without_a_token_stay_among_themselves(activation: str) -> None:
    """Garbage in rows from `length` on must not reach the others; whole tiles of it are not computed."""
    rng = np.random.default_rng(4)
    case = make(rng, "q4", 64, 40, activation=activation)
    x, exact = activations(rng, case, 130)
    x[70:] = np.uint32(0x7FC00000) if activation == "int8" else np.nan
    got = run_gemm(case, PORTABLE, x, length=70)
    expect_close(got[:70], case, exact[:70])
    assert np.isnan(got[128:]).all()


GATES = {
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}


@EVERY_TARGET
@pytest.mark.parametrize("act", GATES)
@pytest.mark.parametrize("form", ["q4", "q4 int8 zero points, bias", "f16"])
@pytest.mark.parametrize("rows", [1, 19])
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
    x, exact = activations(rng, case, 1)
    best = int(np.argmax(exact @ case.w.T))
    # Rows 10 and 150 equal to the best one: the lowest index must win.
    for row in (10, 150):
        case.weights[row], case.w[row] = case.weights[best], case.w[best]
        scales = case.params.view(np.float16).reshape(203, 2).copy()
        scales[row] = scales[best]
        case.params = scales.view(np.uint32).reshape(-1)
    shape = GemvShape(32, 4, 3)
    count = lowering.n_partials(case.linear, shape)
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
        mine = logits[12 * group : 12 * group + 12]
        assert index == 12 * group + np.argmax(mine)
        assert value == mine.max()
    order = np.lexsort((got["partial_indices"], -got["partial_values"]))
    assert got["partial_indices"][order[0]] == min(best, 10)


def test_argmax_partials_are_finite() -> None:
    case = make(np.random.default_rng(7), "f32", 4, 6)
    case.weights[:] = 0
    case.weights[:, 0] = [-np.inf, -np.inf, -1, np.inf, np.nan, 2]
    shape = GemvShape(32, 2)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=Argmax("v", "i"), shape=shape)
    got = run(
        kernel,
        PORTABLE,
        case.arrays(
            x=np.array([[1, 0, 0, 0]], np.float32),
            sequence=words(),
            y=np.zeros((1, 6), np.float32),
            partial_values=np.zeros(3, np.float32),
            partial_indices=np.zeros(3, np.uint32),
        ),
    )
    greatest = np.finfo(np.float32).max
    assert got["partial_values"].tolist() == [-greatest, greatest, greatest]
    assert got["partial_indices"].tolist() == [0, 3, 4]


def test_segments_write_their_ranges() -> None:
    """A weight over the binding limit: each segment is a dispatch into its part of one output."""
    rng = np.random.default_rng(8)
    whole = make(rng, "q4", 64, 64 + 13, bias=True, gated=False)
    bounds = [(0, 64), (64, 77)]
    scales = whole.params[:77].view(np.float16).reshape(77, 2)
    bias = whole.bias.astype(np.float16)
    linear = replace(whole.linear, segments=tuple(Segment(a, b, "weights", "params") for a, b in bounds))
    x, exact = activations(rng, whole, 1)
    many, exact_many = activations(rng, whole, 3)
    shape = GemvShape(32, 4, 2)
    y, y_many = np.full((1, 77), np.nan, np.float32), np.full((3, 77), np.nan, np.float32)
    count = lowering.n_partials(linear, shape)
    assert count == 8 + 2
    values, indices = np.zeros(count, np.float32), np.zeros(count, np.uint32)
    gemvs = lowering.gemv(linear, "x", "y", nodes=(), epilogue=Argmax("v", "i"), shape=shape)
    gemms = lowering.gemm(linear, "x", "y", 3, nodes=())
    for (a, b), gemv, gemm in zip(bounds, gemvs, gemms, strict=True):
        arrays = {
            "weights": whole.weights[a:b],
            "params": np.frombuffer(section(scales[a:b]) + section(bias[a:b]), np.uint32),
            "sequence": words(length=3),
        }
        arrays |= {"x": x, "y": y, "partial_values": values, "partial_indices": indices}
        got = run(gemv, PORTABLE, arrays)
        y, values, indices = got["y"], got["partial_values"], got["partial_indices"]
        y_many = run(gemm, PORTABLE, arrays | {"x": many, "y": y_many})["y"]
    expect_close(y, whole, exact)
    expect_close(y_many, whole, exact_many)
    assert indices[np.argmax(values)] == np.argmax(y)


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


@EVERY_TARGET
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
    x, exact = activations(rng, case, 1)
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
    case = make(rng, "f16", 32, 3 * 16)
    epilogue = RopeAppend(1, 1, 16, 6, "k", "v", rope="rope", rotary_dim=16, table_rows=6)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=epilogue)
    cache = rng.normal(0, 1, (1, 6, 16)).astype(np.float16)
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


@EVERY_TARGET
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (3, 70), (70, 96), (2, 32)])
def test_quantize(rows: int, k: int, block: int, target: Target) -> None:
    """Each value within half a step of what it stands for, the scale exactly max|x| / 127.

    Half a step and 1e-4 of one: a division may be off by a few ulp, which moves the rounding of a value
    that lies in the middle between two integers.
    """
    rng = np.random.default_rng(k)
    x = rng.normal(0, 1, (rows, k)).astype(np.float32)
    x[0, :block] = 0
    kernel = lowering.quantize("x", "y", rows, k, block, nodes=())
    tensor, _ = quantized(x, block)
    length = max(rows - 1, 1)
    got = run(kernel, target, {"x": x, "y": np.zeros_like(tensor), "sequence": words(length=length)})["y"]
    blocks = -(-k // block)
    n_words = blocks * block // 4
    scales = got[:length, n_words : n_words + blocks].view(np.float32).astype(np.float64)
    want = tensor[:length, n_words : n_words + blocks].view(np.float32)
    np.testing.assert_allclose(scales, want, rtol=4e-7)
    q = got[:length, :n_words].copy().view(np.int8).reshape(length, -1, 2, 4).transpose(0, 1, 3, 2)
    values = q.reshape(length, blocks, block) * scales[..., None]
    error = np.abs(values.reshape(length, -1)[:, :k] - x[:length])
    assert (error <= 0.5001 * np.repeat(scales, block, 1)[:, :k]).all()
    assert not q.reshape(length, -1)[:, k:].any()
    assert not got[length:].any()


def test_quantize_then_multiply_is_close_to_float() -> None:
    """The whole int8 path: within half a step per value, which averages out; 1 % is several times that."""
    rng = np.random.default_rng(11)
    case = make(rng, "q4", 512, 64, activation="int8")
    x = rng.normal(0, 1, (5, 512)).astype(np.float32)
    kernel = lowering.quantize("x", "y", 5, 512, 32, nodes=(), sequence=None)
    empty = np.zeros(lowering.quantized_tensor("y", 5, 512, 32).shape, np.uint32)
    got = run_gemm(case, PORTABLE, run(kernel, PORTABLE, {"x": x, "y": empty})["y"])
    want = x.astype(np.float64) @ case.w.T
    assert np.abs(got - want).max() < 0.01 * np.sqrt((want**2).mean()) * 4


def test_what_has_no_kernel_is_refused() -> None:
    rng = np.random.default_rng(12)
    plain = make(rng, "q4", 32, 8).linear
    with pytest.raises(ValueError, match="int8 activations need"):
        lowering.gemv(replace(plain, format="f16", activation="int8"), "x", "y", nodes=())
    with pytest.raises(ValueError, match="gated"):
        lowering.gemv(plain, "x", "y", nodes=(), epilogue=Gated("silu"))
    with pytest.raises(ValueError, match="no epilogue Argmax"):
        lowering.gemm(plain, "x", "y", 4, nodes=(), epilogue=Argmax("v", "i"))
    with pytest.raises(ValueError, match="multiples of 4"):
        epilogue = RopeAppend(1, 1, 6, 8, "k", "v")
        lowering.gemv(replace(plain, n=18), "x", "y", nodes=(), epilogue=epilogue)
