"""Packed weights, byte by byte, and the `Linear`s that are made of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from gpu import run_kernel
from webgpu_compile.compiler import weights
from webgpu_compile.compiler.lowering import linear_weights
from webgpu_compile.compiler.lowering.builder import Builder
from webgpu_compile.compiler.lowering.linear import Gated, gemv
from webgpu_compile.compiler.lowering.linear_weights import Part, dense_linear, q4_linear
from webgpu_compile.compiler.program import DType, Role, Source, Tensor, Weight
from webgpu_compile.compiler.target import TARGETS
from webgpu_compile.compiler.weights import pack

PORTABLE = TARGETS["portable"]


def weight(
    layout: str,
    dtype: DType,
    shape: tuple[int, ...],
    n_sources: int = 1,
    rows: tuple[int, int] | None = None,
    fill: tuple[tuple[str, int], ...] = (),
) -> Weight:
    tensor = Tensor("w", dtype, shape, Role.WEIGHT)
    return Weight(tensor, layout, tuple(Source(str(i)) for i in range(n_sources)), rows, fill)


def packed(target: Weight, *sources: np.ndarray) -> bytes:
    data = b"".join(pack(target, {str(i): source for i, source in enumerate(sources)}))
    assert len(data) == target.tensor.nbytes
    return data


@pytest.mark.parametrize(
    ("source", "dtype", "want"),
    [
        (np.array([1, -2], np.int64), DType.I32, np.array([1, -2], np.int32)),
        (np.array([True, False]), DType.U32, np.array([1, 0], np.uint32)),
        (np.array([0.5, -65504], np.float16), DType.F32, np.array([0.5, -65504], np.float32)),
        (np.array([7, 200, 3], np.uint8), DType.U8, np.array([7, 200, 3, 0], np.uint8)),
        (np.array(3.5, np.float32), DType.F32, np.array([3.5], np.float32)),
        (np.array([1.5, 2], ">f4"), DType.F32, np.array([1.5, 2], "<f4")),
    ],
)
def test_copy_keeps_the_values(source: np.ndarray, dtype: DType, want: np.ndarray) -> None:
    assert packed(weight("copy", dtype, source.shape), source) == want.tobytes()


@pytest.mark.parametrize(
    ("source", "dtype", "message"),
    [
        (np.array([1 << 31], np.int64), DType.I32, "out of the range"),
        (np.array([1e9], np.float32), DType.F16, "float32 values in a tensor of f16"),
        (np.zeros(3, np.float32), DType.F32, "12 bytes packed of 8"),
    ],
)
def test_copy_refuses_to_lose_values(source: np.ndarray, dtype: DType, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pack(weight("copy", dtype, (2,)), {"0": source}))


def test_concat_rows_joins_selected_rows() -> None:
    a, b = np.arange(12, dtype=np.float16).reshape(6, 2), 100 + np.arange(12, dtype=np.float16).reshape(6, 2)
    got = packed(weight("concat_rows", DType.F16, (4, 2), 2, rows=(1, 3)), a, b)
    assert got == np.concatenate([a[1:3], b[1:3]]).tobytes()


@pytest.mark.parametrize(("k", "n", "width"), [(3, 5, 8), (300, 700, 304), (1, 1, 8), (256, 257, 256)])
def test_transpose(k: int, n: int, width: int) -> None:
    rng = np.random.default_rng(k)
    sources = [rng.normal(size=(k, n)).astype(np.float16) for _ in range(2)]
    want = np.zeros((2 * n, width), np.float16)
    want[:, :k] = np.concatenate(sources, axis=1).T
    assert packed(weight("transpose", DType.F16, want.shape, 2), *sources) == want.tobytes()
    if n > 2:
        middle = weight("transpose", DType.F16, (n - 2, width), rows=(1, n - 1))
        assert packed(middle, sources[0]) == want[1 : n - 1].tobytes()


def test_transpose_in_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE_NBYTES", 1 << 12)
    source = np.arange(40 * 1000, dtype=np.float32).reshape(40, 1000)
    target = weight("transpose", DType.F32, (1000, 40))
    pieces = list(pack(target, {"0": source}))
    assert len(pieces) == 4
    assert b"".join(pieces) == np.ascontiguousarray(source.T).tobytes()


def test_pad_rows() -> None:
    source = np.arange(15, dtype=np.float16).reshape(3, 5)
    want = np.pad(source, ((0, 0), (0, 3)))
    assert packed(weight("pad_rows", DType.F16, (3, 8)), source) == want.tobytes()


def test_sections_are_padded_to_words() -> None:
    scales = [np.array([1.5], np.float16), np.array([2.5, 3.5], np.float16)]
    zeros = np.array([1, 2, 3, 4, 5], np.uint8)
    fill = (("section", 2), ("section", 1))
    got = packed(weight("sections", DType.U32, (4,), 3, fill=fill), *scales, zeros)
    assert got == np.array([1.5, 2.5, 3.5], np.float16).tobytes() + bytes(2) + zeros.tobytes() + bytes(3)


def test_sections_select_rows_of_flat_sources() -> None:
    scales, bias = np.arange(12, dtype=np.float16), np.arange(4, dtype=np.float16)
    fill = (("section", 1), ("section", 1), ("n_rows", 4))
    got = packed(weight("sections", DType.U32, (4,), 2, rows=(1, 3), fill=fill), scales, bias)
    assert got == scales[3:9].tobytes() + bias[1:3].tobytes()


@pytest.mark.parametrize("layout", ["copy", "transpose", "pad_rows"])
def test_big_tables_pass_through_little_memory(layout: str) -> None:
    source = np.zeros((2048, 16384), np.float32)  # 128 MiB
    shape = source.shape if layout != "transpose" else source.shape[::-1]
    target = weight(layout, DType.F32, shape)
    tracemalloc.start()
    nbytes = sum(len(piece) for piece in pack(target, {"0": source}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert nbytes == source.nbytes
    assert peak < 32 << 20


def builder_of() -> Builder:
    return Builder(gs.Graph(), {}, PORTABLE)


def q4_arrays(
    rng: np.random.Generator, n: int, k: int, block: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """MatMulNBits inputs as ONNX has them, scales flat, and the matrix."""
    blocks = -(-k // block)
    q = rng.integers(0, 16, (n, blocks, block), np.uint8)
    zeros = rng.integers(0, 16, (n, blocks + blocks % 2), np.uint8)
    scales = rng.normal(0, 1, (n, blocks)).astype(np.float16)
    w = (q.astype(np.float64) - zeros[:, :blocks, None]) * scales[..., None]
    return {
        "B": q[..., ::2] | q[..., 1::2] << 4,
        "scales": scales.reshape(-1),
        "zeros": (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1),
        "bias": rng.normal(0, 1, n).astype(np.float16),
    }, w.reshape(n, -1)[:, :k]


def test_gated_linear_in_segments_from_initializers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: flat scales, zero points and biases of gate and up, in two segments, to numbers."""
    monkeypatch.setattr(linear_weights, "split_rows", lambda n, nbytes: [(0, 64), (64, n)])
    rng = np.random.default_rng(0)
    gate, gate_w = q4_arrays(rng, 75, 96, 32)
    up, up_w = q4_arrays(rng, 75, 96, 32)
    arrays = {f"gate.{key}": value for key, value in gate.items()}
    arrays |= {f"up.{key}": value for key, value in up.items()}
    builder = builder_of()
    parts = [Part(75, f"{p}.B", f"{p}.scales", f"{p}.zeros", f"{p}.bias") for p in ("gate", "up")]
    linear = q4_linear(builder, parts, k=96, block_size=32, gated=True)
    x, y = rng.normal(0, 1, (1, 96)).astype(np.float32), np.zeros((1, 75), np.float32)
    for kernel in gemv(linear, "x", "y", nodes=(), epilogue=Gated("silu"), sequence=None):
        bound = {"x": x, "y": y}
        for binding in kernel.bindings:
            if binding.tensor in builder.weights:
                data = b"".join(pack(builder.weights[binding.tensor], arrays))
                bound[binding.variable] = np.frombuffer(data, np.uint32)
        y = run_kernel(kernel, PORTABLE, bound)["y"]
    g, u = x @ gate_w.T + gate["bias"], x @ up_w.T + up["bias"]
    # Products of two sums of 96 terms in f32: 1e-5 of the largest is ten times what was seen.
    np.testing.assert_allclose(y, g / (1 + np.exp(-g)) * u, rtol=0, atol=1e-5 * np.abs(g * u).max())


def test_single_parts_are_the_models_own_tensors() -> None:
    """A tied embedding binds the same weights and scales: names and layout are those of Builder.weight."""
    builder = builder_of()
    linear = q4_linear(builder, [Part(64, "B", "scales")], k=64, block_size=32)
    [segment] = linear.segments
    assert (segment.weights, segment.params) == ("B", "scales")
    assert [builder.weights[name].layout for name in ("B", "scales")] == ["copy", "copy"]
    assert q4_linear(builder, [Part(64, "B", "scales")], k=64, block_size=32) == linear


def test_weights_over_the_binding_limit_are_split() -> None:
    builder = builder_of()
    linear = q4_linear(builder, [Part(128256, "B", "scales")], k=4096, block_size=32)
    assert [(s.begin, s.end) for s in linear.segments] == [(0, 65536), (65536, 128256)]
    assert [s.weights for s in linear.segments] == ["B[0:65536]", "B[65536:128256]"]
    assert all(w.tensor.nbytes <= 128 << 20 for w in builder.weights.values())
    linear = dense_linear(
        builder, [Part(14336, "gate"), Part(14336, "up")], k=4096, dtype=DType.F16, gated=True
    )
    assert [(s.begin, s.end) for s in linear.segments] == [(0, 8192), (8192, 14336)]
    assert builder.weights[linear.segments[1].weights].tensor.shape == (2 * 6144, 4096)


@pytest.mark.parametrize("transposed", [False, True])
def test_dense_linear_pads_rows_and_has_a_bias(transposed: bool) -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(0, 1, (9, 7)).astype(np.float16)
    bias = rng.normal(0, 1, 9).astype(np.float32)
    builder = builder_of()
    linear = dense_linear(
        builder, [Part(9, "w", bias="b")], k=7, dtype=DType.F16, bias_dtype=DType.F32, transposed=transposed
    )
    arrays = {"w": w if transposed else np.ascontiguousarray(w.T), "b": bias}
    [kernel] = gemv(linear, "x", "y", nodes=(), sequence=None)
    x = rng.normal(0, 1, (1, 7)).astype(np.float32)
    bound = {"x": x, "y": np.zeros((1, 9), np.float32)}
    for binding in kernel.bindings:
        if binding.tensor in builder.weights:
            bound[binding.variable] = np.frombuffer(
                b"".join(pack(builder.weights[binding.tensor], arrays)), np.uint32
            )
    got = run_kernel(kernel, PORTABLE, bound)["y"]
    np.testing.assert_allclose(got, x @ w.T.astype(np.float64) + bias, rtol=0, atol=1e-5)


def test_parts_must_be_alike() -> None:
    with pytest.raises(ValueError, match="some parts of a Linear have bias"):
        dense_linear(builder_of(), [Part(4, "a", bias="b"), Part(4, "c")], k=8, dtype=DType.F16)
    with pytest.raises(ValueError, match="gate and up"):
        dense_linear(builder_of(), [Part(4, "a"), Part(5, "c")], k=8, dtype=DType.F16, gated=True)
