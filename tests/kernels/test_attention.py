"""Attention over the KV cache against float64 NumPy: decode, prefill, and the rotated append."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from attention_cases import NUMPY, lower_append, run, sequence
from gpu import ALL_TARGETS
from linear_cases import quantized
from tint import check_all
from webgpu_compile.compiler.emit.wgsl import render
from webgpu_compile.compiler.lowering.attention import (
    Attention,
    Lowered,
    decode_attention,
)
from webgpu_compile.compiler.lowering.attention_cpu import attention_cpu
from webgpu_compile.compiler.lowering.prefill_attention import n_lanes, prefill_attention
from webgpu_compile.compiler.program import DType, IndirectGrid
from webgpu_compile.compiler.sequence import STOP_TOKEN
from webgpu_compile.compiler.target import SPEC_LIMITS, TARGETS, Target

TOLERANCE = 2e-6
"""Greatest error for outputs of standard deviation below 1: f32 sums of up to some hundred terms, and
`exp` to 3 ulp of an exponent up to 10 in size. Caches are read exactly, whichever their dtype."""

CHAIN_TOLERANCE = 8e-6
"""Prefill adds all products of a score one after the other, up to 256 of them, where decode adds dot products
of four: the rounding of a score of size 50 grows by the root of four, and so does that of its weight."""

PORTABLE, SOFTWARE = TARGETS["portable"], TARGETS["software"]
DISTINCT = (ALL_TARGETS[0], PORTABLE, SOFTWARE)
"""No attention kernel uses subgroups, so that its bits depend on no subgroup size: two texts for GPUs."""


SHAPES = {
    "mha": Attention(4, 4, 32, 200),
    "group 3, capped, window 16": Attention(6, 2, 64, 200, softcap=2.0, window=16),
    "group 4, f32 cache": Attention(8, 2, 80, 200, DType.F32),
    "group 7, sinks, window 64": Attention(7, 1, 96, 130, window=64, head_sink=DType.F16),
    "group 14, smooth, window 65": Attention(14, 1, 128, 200, window=65, smooth_softmax=True),
    "one split, f32 sinks": Attention(2, 1, 256, 64, DType.F32, head_sink=DType.F32),
    "head size 256, window 63": Attention(4, 1, 256, 200, window=63, scale=0.05),
    "odd head size, window 1": Attention(3, 1, 36, 70, window=1),
    "prime group": Attention(11, 1, 64, 129, DType.F32),
    "short tiles, head size 48": Attention(4, 2, 48, 200, tile=16),
    "long tiles, group 7, window 150": Attention(7, 1, 64, 300, window=150, tile=128),
    "tiles in turn, group 3, window 150": Attention(6, 2, 64, 300, window=150, tile=16, splits=3),
    "merged four at a time, window 1700": Attention(2, 1, 32, 2000, window=1700, tile=16, splits=128),
}
shapes = pytest.mark.parametrize("attention", SHAPES.values(), ids=SHAPES)
targets = pytest.mark.parametrize("target", DISTINCT, ids=lambda target: target.name)


def make_inputs(attention: Attention, rows: int, n_keys: int) -> dict[str, np.ndarray]:
    """Random q and caches; NaN where nothing has been appended yet, which must never be read."""
    rng = np.random.default_rng(rows + n_keys)
    inputs = {"q": 2 * rng.standard_normal((rows, attention.heads, attention.head_size)).astype(np.float32)}
    for cache in ("k_cache", "v_cache"):
        values = rng.standard_normal((attention.kv_heads, attention.capacity, attention.head_size))
        values[:, n_keys:] = np.nan
        inputs[cache] = values.astype(NUMPY[attention.cache_dtype])
    if attention.head_sink:
        inputs["head_sink"] = rng.standard_normal(attention.heads).astype(NUMPY[attention.head_sink])
    return inputs


def reference(attention: Attention, inputs: dict[str, np.ndarray], past: int) -> np.ndarray:
    """Row r is position past + r. float64 [rows, heads, head_size]."""
    out = []
    for row, q in enumerate(inputs["q"].astype(np.float64)):
        end = past + row + 1
        begin = 0 if attention.window < 0 else max(0, end - attention.window)
        for head, vector in enumerate(q):
            k, v = (
                inputs[cache][head // attention.group, begin:end].astype(np.float64)
                for cache in ("k_cache", "v_cache")
            )
            scores = k @ vector * (attention.scale or 1 / sqrt(attention.head_size))
            if attention.softcap:
                scores = attention.softcap * np.tanh(scores / attention.softcap)
            extra = [float(inputs["head_sink"][head])] if attention.head_sink else []
            extra += [0.0] if attention.smooth_softmax else []
            top = max([*scores, *extra])
            weights = np.exp(scores - top)
            out.append(weights @ v / (weights.sum() + np.exp(np.array(extra) - top).sum()))
    return np.reshape(out, inputs["q"].shape)


def lower_decode(attention: Attention, grid: str | None = None) -> Lowered:
    sink = "head_sink" if attention.head_sink else None
    return decode_attention(
        attention,
        q="q",
        k_cache="k_cache",
        v_cache="v_cache",
        out="y",
        name="attention",
        nodes=("/attn",),
        head_sink=sink,
        grid=grid,
    )


def lower_cpu(attention: Attention, rows: int) -> Lowered:
    sink = "head_sink" if attention.head_sink else None
    caches = {"k_cache": "k_cache", "v_cache": "v_cache"}
    return attention_cpu(attention, rows, q="q", **caches, out="y", nodes=(), head_sink=sink)


def run_decode(attention: Attention, target: Target, total: int) -> tuple[np.ndarray, np.ndarray]:
    """What the GPU and the reference say for a sequence of `total` positions."""
    inputs = make_inputs(attention, 1, total)
    y = np.full((1, attention.heads, attention.head_size), np.nan, np.float32)
    lowered = lower_cpu(attention, 1) if target.cpu else lower_decode(attention)
    got = run(lowered, target, {**inputs, "y": y, "sequence": sequence(total - 1)})
    return got["y"], reference(attention, inputs, total - 1)


@targets
@shapes
def test_decode(attention: Attention, target: Target) -> None:
    lengths = {1, 2, 17, 64, 65, 66, 127, 128, 129, 600, attention.capacity - 1, attention.capacity}
    for total in sorted(n for n in lengths if n <= attention.capacity):
        got, expected = run_decode(attention, target, total)
        np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0, err_msg=f"length {total}")


@pytest.mark.parametrize("total", [1, 100, 131072])
def test_decode_of_a_long_cache(total: int) -> None:
    """4,096 tiles by 64 splits; 131,072 terms, of which the greatest decide."""
    got, expected = run_decode(Attention(2, 1, 32, 131072), PORTABLE, total)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)


def test_a_window_bounds_the_grid_of_a_long_cache() -> None:
    attention = Attention(2, 1, 32, 131072, window=128)
    assert attention.n_splits == 5
    for total in (1, 128, 129, 192, 193, 131072):
        got, expected = run_decode(attention, PORTABLE, total)
        np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("window", [-1, 1, 63, 64, 65, 66, 500])
def test_indirect_and_fixed_grids_give_the_same_bits(window: int) -> None:
    attention = Attention(2, 1, 32, 260, window=window)
    fixed, indirect = lower_decode(attention), lower_decode(attention, grid="grid")
    assert indirect.kernels[0].grid == IndirectGrid("grid")
    assert indirect.kernels[0].worst_grid == fixed.kernels[0].grid
    for total in (1, 64, 65, 128, 129, 192, 193, 260):
        inputs = make_inputs(attention, 1, total)
        arrays = {**inputs, "y": np.zeros_like(inputs["q"]), "sequence": sequence(total - 1)}
        qkv = np.ones((1, 4, 32), np.float32)
        append = lower_append(attention, 1, grid="grid")
        words = run(append, PORTABLE, {**arrays, "qkv": qkv, "grid": np.full(3, 7, np.uint32)})["grid"]
        first = max(0, total - window) if window > 0 else 0
        live = min((total - 1) // attention.tile - first // attention.tile + 1, attention.n_splits)
        assert words.tolist() == [1, live, 1]
        kernels = (replace(indirect.kernels[0], grid=tuple(words.tolist())), *indirect.kernels[1:])
        got = run(replace(indirect, kernels=kernels), PORTABLE, arrays)["y"]
        whole = run(fixed, PORTABLE, arrays)
        assert np.array_equal(got, whole["y"])
        if attention.n_splits > 1:  # what lies behind the sequence was not even begun
            assert np.isnan(whole["attention/sums"][:, live:]).all()


def test_a_stopped_decode_does_nothing() -> None:
    attention = Attention(2, 1, 32, 200)
    arrays = make_inputs(attention, 1, 50)
    arrays |= {"y": np.full((1, 2, 32), 5, np.float32), "sequence": sequence(49, stop=STOP_TOKEN)}
    got = run(lower_decode(attention), PORTABLE, arrays)
    assert (got["y"] == 5).all()
    assert np.isnan(got["attention/sums"]).all()
    arrays |= {"qkv": np.ones((1, 4, 32), np.float32), "grid": np.full(3, 7, np.uint32)}
    appended = run(lower_append(attention, 1, grid="grid"), PORTABLE, arrays)
    assert np.isnan(appended["k_cache"][:, 50:]).all()
    assert appended["grid"].tolist() == [1, 0, 1]
    assert (run(lower_cpu(attention, 1), SOFTWARE, arrays)["y"] == 5).all()


def test_extreme_scores_stay_finite() -> None:
    """Scores of ±2,000: far out of reach of exp, and of tanh on some drivers."""
    plain = Attention(2, 1, 32, 200, scale=30.0)
    for attention in (plain, replace(plain, softcap=5.0)):
        for target in (PORTABLE, SOFTWARE):
            got, expected = run_decode(attention, target, 150)
            np.testing.assert_allclose(got, expected, atol=2e-3, rtol=0)  # 2,000 · 2^-24 · some terms


# -- prefill


def run_prefill(
    attention: Attention, target: Target, rows: int, past: int, length: int, lanes: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    inputs = make_inputs(attention, rows, past + length)
    inputs["q"][length:] = np.nan
    sink = "head_sink" if attention.head_sink else None
    lowered = prefill_attention(
        attention,
        rows,
        q="q",
        k_cache="k_cache",
        v_cache="v_cache",
        out="y",
        name="attention",
        nodes=(),
        lanes=lanes,
        head_sink=sink,
    )
    if target.cpu:
        lowered = lower_cpu(attention, rows)
    arrays = {**inputs, "y": np.full_like(inputs["q"], np.nan), "sequence": sequence(past, length)}
    got = run(lowered, target, arrays)["y"]
    assert np.isnan(got[length:]).all()  # not written
    return got[:length], reference(attention, inputs | {"q": inputs["q"][:length]}, past)


@targets
@shapes
def test_prefill(attention: Attention, target: Target) -> None:
    for past, length in ((0, 1), (0, 17), (1, 16), (31, 17), (33, 3), (attention.capacity - 17, 17)):
        got, expected = run_prefill(attention, target, 17, past, length)
        message = f"past {past}, length {length}"
        np.testing.assert_allclose(got, expected, atol=CHAIN_TOLERANCE, rtol=0, err_msg=message)


@pytest.mark.parametrize("rows", [2, 5, 64, 129])
def test_prefill_of_other_chunks(rows: int) -> None:
    attention = Attention(3, 1, 64, 300, window=48)
    for past, length in ((0, rows), (100, rows - 1), (63, 1), (300 - rows, rows)):
        for target in (PORTABLE, SOFTWARE):
            got, expected = run_prefill(attention, target, rows, past, length)
            np.testing.assert_allclose(got, expected, atol=CHAIN_TOLERANCE, rtol=0, err_msg=f"past {past}")


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_a_row_has_the_same_bits_in_every_chunk(lanes: int) -> None:
    """However a prompt is cut: 90 positions in one chunk, and their last 3 or 41 in another."""
    for attention in (Attention(3, 1, 64, 300), Attention(4, 2, 128, 300, window=33)):
        inputs = make_inputs(attention, 90, 290)
        results = []
        for rows, length in ((90, 90), (50, 41), (3, 3)):
            q = np.zeros((rows, *inputs["q"].shape[1:]), np.float32)
            q[:length] = inputs["q"][-length:]
            names = {name: name for name in ("q", "k_cache", "v_cache")}
            lowered = prefill_attention(
                attention, rows, **names, out="y", name="attention", nodes=(), lanes=lanes
            )
            arrays = {**inputs, "q": q, "y": np.zeros_like(q), "sequence": sequence(290 - length, length)}
            results.append(run(lowered, PORTABLE, arrays)["y"][:length])
        assert np.array_equal(results[0][-41:], results[1])
        assert np.array_equal(results[0][-3:], results[2])


@pytest.mark.parametrize("head_size", [32, 96, 256])
def test_prefill_to_int8(head_size: int) -> None:
    """The merge quantises what it would else have written, as `quantize` does."""
    attention = Attention(4, 2, head_size, 100)
    rows, length, width = 9, 7, 4 * head_size
    exact, _ = run_prefill(attention, PORTABLE, rows, 50, length)
    expected, _ = quantized(exact.reshape(length, width), 32)
    inputs = make_inputs(attention, rows, 57)
    names = {name: name for name in ("q", "k_cache", "v_cache")}
    lowered = prefill_attention(attention, rows, **names, out="y", name="attention", nodes=(), out_int8=True)
    y = np.zeros((rows, expected.shape[1]), np.uint32)
    got = run(lowered, PORTABLE, {**inputs, "y": y, "sequence": sequence(50, length)})["y"]
    assert np.array_equal(got[:length, : width // 4], expected[:, : width // 4])
    scales = slice(width // 4, width // 4 + width // 32)
    np.testing.assert_allclose(
        got[:length, scales].view(np.float32), expected[:, scales].view(np.float32), rtol=1e-6
    )
    assert (got[length:] == 0).all()


def test_lanes_fit_into_memory() -> None:
    large = Attention(32, 8, 128, 4096)
    assert n_lanes(large, 512) == 8
    assert n_lanes(large, 2048) == 2
    assert n_lanes(Attention(2, 1, 32, 40), 16) == 2  # two tiles of keys


def test_a_chunk_without_positions_writes_nothing() -> None:
    for target in (PORTABLE, SOFTWARE):
        got, _ = run_prefill(Attention(2, 1, 32, 64, smooth_softmax=True), target, 5, 0, 0)
        assert got.shape == (0, 2, 32)


# -- rope_append


def rotated(attention: Attention, x: np.ndarray, table: np.ndarray, first_row: int) -> np.ndarray:
    """x [rows, n, head_size] in float64, row r turned by table row first_row + r."""
    half, rows = attention.rotary_dim // 2, np.arange(len(x)) + first_row
    cos, sin = (t.astype(np.float64)[np.minimum(rows, len(t) - 1)][:, None] for t in np.split(table, 2))
    x = x.astype(np.float64)
    out = x.copy()
    if attention.interleaved:
        pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    else:
        pairs = (slice(0, half), slice(half, 2 * half))
    a, b = (x[:, :, part] for part in pairs)
    out[:, :, pairs[0]], out[:, :, pairs[1]] = a * cos - b * sin, b * cos + a * sin
    return out


ROPES = {
    "none": Attention(3, 1, 32, 40),
    "whole head": Attention(6, 2, 64, 40, rotary_dim=64, table_rows=64),
    "partial": Attention(4, 2, 96, 40, DType.F32, rotary_dim=72, table_rows=40, table_dtype=DType.F32),
    "interleaved": Attention(2, 1, 80, 40, rotary_dim=40, table_rows=64, interleaved=True),
    "long": Attention(2, 2, 32, 40, rotary_dim=32, table_rows=64, long_threshold=20, long_row=20),
}


@targets
@pytest.mark.parametrize("separate", [False, True], ids=["packed", "separate"])
@pytest.mark.parametrize("attention", ROPES.values(), ids=ROPES)
def test_rope_append(attention: Attention, separate: bool, target: Target) -> None:
    """Also: nothing of the caches changes but the new positions; at the capacity nothing is appended."""
    rng = np.random.default_rng(1)
    heads, kv, size = attention.heads, attention.kv_heads, attention.head_size
    angles = rng.uniform(0, 6, (attention.table_rows, attention.rotary_dim // 2))
    table = np.concatenate([np.cos(angles), np.sin(angles)]).astype(NUMPY[attention.table_dtype])
    for rows, past, length, call in (
        (1, 0, 1, 1),
        (1, 39, 1, 40),
        (5, 3, 4, 20),
        (5, 7, 5, 21),
        (5, 37, 5, 42),
    ):
        x = rng.standard_normal((rows, heads + 2 * kv, size)).astype(np.float32)
        q, k, v = x[:, :heads], x[:, heads:-kv], x[:, -kv:]
        caches = {
            name: rng.standard_normal((kv, 40, size)).astype(NUMPY[attention.cache_dtype])
            for name in ("k_cache", "v_cache")
        }
        arrays = {"qkv": x, "q_in": q, "k_in": k, "v_in": v, **caches}
        arrays |= {
            "q": np.zeros(q.shape, np.float32),
            "rope": table,
            "sequence": sequence(past, length, call),
        }
        grid = rows == 1 and separate
        if grid:
            arrays["grid"] = np.zeros(3, np.uint32)
        got = run(lower_append(attention, rows, "grid" if grid else None, separate), target, arrays)
        if grid:
            assert got["grid"].tolist() == [kv, past // attention.tile + 1, 1]
        fits = min(length, 40 - past)
        row = past + (attention.long_row if call > attention.long_threshold else 0)
        turn = (lambda a, row=row: rotated(attention, a, table, row)) if attention.rotary_dim else np.float64
        np.testing.assert_allclose(got["q"][:length], turn(q[:length]), atol=1e-6, rtol=0)
        for name, values in (("k_cache", turn(k[:fits])), ("v_cache", v[:fits])):
            expected = caches[name].astype(np.float64)
            expected[:, past : past + fits] = values.swapaxes(0, 1)
            # One f16 rounding of values up to 8, or f32 arithmetic.
            tolerance = 2**-9 if attention.cache_dtype is DType.F16 else 1e-6
            np.testing.assert_allclose(got[name], expected, atol=tolerance, rtol=0)
            untouched = np.delete(got[name], np.arange(past, past + fits), axis=1)
            assert np.array_equal(untouched, np.delete(caches[name], np.arange(past, past + fits), axis=1))


# -- what every kernel must satisfy


def test_tint_accepts_all_and_the_limits_hold() -> None:
    kernels = [
        k for a in ROPES.values() for s in (False, True) for k in lower_append(a, 1, "grid", s).kernels
    ]
    for attention in (*SHAPES.values(), *(Attention(g, 1, 256, 4096) for g in range(1, 17))):
        sink = "head_sink" if attention.head_sink else None
        kernels += lower_decode(attention).kernels
        kernels += prefill_attention(
            attention, 64, q="q", k_cache="k", v_cache="v", out="y", name="a", nodes=(), head_sink=sink
        ).kernels
        kernels += lower_cpu(attention, 64).kernels
    for kernel in kernels:
        assert kernel.workgroup_nbytes <= SPEC_LIMITS["max-compute-workgroup-storage-size"]
    for target in ALL_TARGETS:
        texts = [render(kernel, target) for kernel in kernels]
        for kernel, errors in zip(kernels, check_all(texts, target.features), strict=True):
            assert not errors, f"{kernel.name} for {target.name}: {errors}"
            assert target.f16 or render(kernel, PORTABLE) == render(kernel, target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kv_heads": 3},
        {"head_size": 30},
        {"head_size": 260},
        {"rotary_dim": 6},
        {"rotary_dim": 68},
        {"window": 0},
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"head|rotary|window"):
        Attention(**({"heads": 8, "kv_heads": 4, "head_size": 64, "capacity": 10} | wrong))
