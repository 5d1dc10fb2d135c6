"""GEMV and GEMM against float64 NumPy on the dequantised weights, and int8 against exact integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tint
from gpu import ALL_TARGETS, GPU_TARGETS
from linear_cases import (
    FORMS,
    activations,
    expect_close,
    make,
    run,
    run_gemm,
    run_gemv,
    section,
    words,
)
from webgpu_compile.compiler.emit.modules import Unit, commented, merged
from webgpu_compile.compiler.emit.wgsl import declarations, finished, render
from webgpu_compile.compiler.lowering import linear as lowering
from webgpu_compile.compiler.lowering import linear_cpu
from webgpu_compile.compiler.lowering.linear import (
    Argmax,
    Gated,
    GemvShape,
    RopeAppend,
    RowsShape,
    Segment,
    TileShape,
)
from webgpu_compile.compiler.lowering.linear_format import Linear
from webgpu_compile.compiler.program import DType
from webgpu_compile.compiler.target import TARGETS, Target

PORTABLE = TARGETS["portable"]
SUBGROUPS = TARGETS["subgroups"]
SOFTWARE = TARGETS["software"]
EVERY_TARGET = pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.name)
EVERY_GPU = pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)


EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@EVERY_TARGET
@EVERY_FORM
def test_gemv(form: dict, target: Target) -> None:
    rng = np.random.default_rng(1)
    case = make(rng, k=320, n=67, **form)
    x, exact = activations(rng, case)
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
    x, exact = activations(rng, case)
    for target in (PORTABLE, SOFTWARE):
        expect_close(run_gemv(case, target, x), case, exact)


@pytest.mark.parametrize("fmt", ["f16", "f32"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 3), (10, 5), (12, 6), (2049, 9)])
def test_gemv_dense_shapes(fmt: str, k: int, n: int) -> None:
    """K odd, even, a multiple of 4 and not of 8: each has another way to read x."""
    rng = np.random.default_rng(k)
    case = make(rng, fmt, k, n)
    x, exact = activations(rng, case)
    for target in (PORTABLE, SOFTWARE):
        expect_close(run_gemv(case, target, x), case, exact)


@EVERY_GPU
@pytest.mark.parametrize("threads", [32, 128, 256])
@pytest.mark.parametrize("lanes", [16, 32])
@pytest.mark.parametrize("k", [1184, 1024, 96])
def test_gemv_every_shape_of_workgroup(threads: int, lanes: int, k: int, target: Target) -> None:
    """Chunks that fill the lanes once or several times, or do not fill them."""
    rng = np.random.default_rng(threads)
    case = make(rng, "q4", k, 27, bias=True)
    x, exact = activations(rng, case)
    shape = GemvShape(threads, lanes)
    expect_close(run_gemv(case, target, x, shape=shape), case, exact)


def test_gemv_more_than_65535_workgroups() -> None:
    """The grid is folded; workgroups past the last one must not write partial maxima."""
    rng = np.random.default_rng(2)
    n_tiles = 65537
    n = 4 * (n_tiles - 1) + 1
    case = make(rng, "q4", 32, n)
    x, exact = activations(rng, case)
    shape = GemvShape(32, 32)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=(), epilogue=Argmax("v", "i"), shape=shape)
    arrays = case.arrays(
        x=x,
        y=np.full((1, n), np.nan, np.float32),
        sequence=words(),
        partial_values=np.full(n_tiles + 8, np.nan, np.float32),
        partial_indices=np.full(n_tiles + 8, 7, np.uint32),
    )
    got = run(kernel, SUBGROUPS, arrays)
    expect_close(got["y"], case, exact)
    best = got["y"][0, : n - 1].reshape(-1, 4).argmax(1) + 4 * np.arange(n_tiles - 1)
    assert np.array_equal(got["partial_indices"][:n_tiles], [*best, n - 1])
    assert (got["partial_indices"][n_tiles:] == 7).all()


def test_products_of_rows_without_a_token_are_left_out() -> None:
    rng = np.random.default_rng(4)
    case = make(rng, "q4", 64, 9, activation="int8")
    x, exact = activations(rng, case, 5)
    got = run_gemm(case, SOFTWARE, x, length=3)
    expect_close(got[:3], case, exact[:3])
    assert np.isnan(got[3:]).all()
    [kernel] = linear_cpu.product(case.linear, "x", "y", 5, nodes=())
    y = np.full((5, 9), 7, np.float32)
    state = words(stop=1, length=5)
    assert (run(kernel, SOFTWARE, case.arrays(x=x, y=y, sequence=state))["y"] == 7).all()


def test_a_position_has_the_same_products_alone_and_in_a_chunk() -> None:
    """Bit for bit: how a prompt is cut cannot change its logits."""
    rng = np.random.default_rng(5)
    case = make(rng, "q4", 320, 30, activation="int8")
    x, _ = activations(rng, case, 6)
    whole = run_gemm(case, SOFTWARE, x)
    for row in range(6):
        assert np.array_equal(run_gemv(case, SOFTWARE, x[row : row + 1])[0], whole[row])


def test_gemv_does_nothing_after_the_stop() -> None:
    case = make(np.random.default_rng(3), "q4", 64, 8)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=())
    y = np.full((1, 8), 7, np.float32)
    x = np.ones((1, 64), np.float32)
    got = run(kernel, PORTABLE, case.arrays(x=x, y=y, sequence=words(stop=1)))
    assert (got["y"] == 7).all()


@EVERY_TARGET
@EVERY_FORM
@pytest.mark.parametrize("rows", [2, 16, 17, 33, 70])
def test_gemm(form: dict, rows: int, target: Target) -> None:
    """Every shape that the compiler chooses, with edges in rows, columns and K."""
    rng = np.random.default_rng(rows)
    case = make(rng, k=160, n=67, **form)
    x, exact = activations(rng, case, rows)
    expect_close(run_gemm(case, target, x), case, exact)


INT8_SHAPES = (
    RowsShape(4, 32),
    RowsShape(1, 32),
    RowsShape(8, 16, batch=2),
    RowsShape(8, 8, batch=8),
    RowsShape(4, 64, batch=2),
    TileShape(16, 64),
    TileShape(32, 64),
    TileShape(32, 128),
    TileShape(64, 128),
    TileShape(64, 256),
    TileShape(128, 128),
    TileShape(128, 256),
)


@EVERY_TARGET
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (353, 70), (2240, 128), (4128, 12)])
def test_int8_gemm_has_one_order_of_summation(block: int, k: int, n: int, target: Target) -> None:
    """The same bits in every shape: K in one part and in many rounds of parts, filled and not."""
    rng = np.random.default_rng(block + k)
    options = {"zero_points": True, "bias": True} if k % 2 else {}
    case = make(rng, "q4", k, n, block=block, activation="int8", **options)
    x, exact = activations(rng, case, 16)
    results = [run_gemm(case, target, x, length=13, shape=shape)[:13] for shape in INT8_SHAPES]
    expect_close(results[0], case, exact[:13])
    for shape, result in zip(INT8_SHAPES, results, strict=True):
        assert np.array_equal(result, results[0]), shape


@pytest.mark.parametrize("shape", INT8_SHAPES[:5], ids=str)
def test_few_rows_of_a_gated_layer(shape: RowsShape) -> None:
    """Tiles of which the outputs, half as many as rows of W, fill a part only."""
    case = make(np.random.default_rng(5), "q4", 96, 21, gated=True, activation="int8")
    x, _ = activations(np.random.default_rng(6), case, 7)
    options = {"epilogue": Gated("silu")}
    expected = run_gemm(case, PORTABLE, x, shape=TileShape(16, 64), **options)
    assert np.array_equal(run_gemm(case, PORTABLE, x, shape=shape, **options), expected)


def test_tiles_are_high_where_many_remain() -> None:
    """256 workgroups of 128 rows or more: gate and up of a 1B from 128 rows on, its other layers never."""
    layers = {"gate, up": (8192, True), "qkv": (3072, False), "head": (128256, False)}
    heights = {
        name: [
            lowering.gemm_shape(Linear("q4", 2048, n, (), 32, gated=gated, activation="int8"), rows).rows
            for rows in (64, 128, 512)
        ]
        for name, (n, gated) in layers.items()
    }
    assert heights == {"gate, up": [128, 128, 128], "qkv": [64, 64, 64], "head": [128, 128, 128]}


def test_few_rows_of_more_than_65535_workgroups() -> None:
    """The grid is folded; workgroups past the last one must not write."""
    rng = np.random.default_rng(7)
    case = make(rng, "q4", 32, 4 * 65537, activation="int8")
    x, exact = activations(rng, case, 2)
    expect_close(run_gemm(case, PORTABLE, x, shape=RowsShape(1, 8, batch=2)), case, exact)


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
    for rows in (3, 18):
        x, exact = activations(rng, case, rows)
        expect_close(run_gemm(case, PORTABLE, x), case, exact)
        expect_close(run_gemm(case, SOFTWARE, x), case, exact)


@pytest.mark.parametrize("fmt", ["f16", "f32"])
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 1, 1), (2, 7, 3), (129, 10, 130), (17, 12, 64)])
def test_gemm_dense_shapes(fmt: str, rows: int, k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    case = make(rng, fmt, k, n)
    x, exact = activations(rng, case, rows)
    expect_close(run_gemm(case, PORTABLE, x), case, exact)


@pytest.mark.parametrize("rows", [16, 130])
@pytest.mark.parametrize("activation", ["f32", "int8"])
def test_gemm_rows_without_a_token_stay_among_themselves(activation: str, rows: int) -> None:
    """Garbage in rows from `length` on must not reach the others, and is not computed with."""
    rng = np.random.default_rng(4)
    case = make(rng, "q4", 64, 40, activation=activation)
    x, exact = activations(rng, case, rows)
    length = rows * 5 // 9
    x[length:] = np.uint32(0x7FC00000) if activation == "int8" else np.nan
    got = run_gemm(case, PORTABLE, x, length=length)
    expect_close(got[:length], case, exact[:length])
    assert np.isnan(got[length:]).all()


@pytest.mark.parametrize("activation", ["f32", "int8"])
def test_chunks_of_several_sizes_share_a_shader(activation: str) -> None:
    linear = make(np.random.default_rng(9), "q4", 64, 128, activation=activation).linear
    for sizes in ((2, 5, 16), (33, 128, 512)):
        texts = {render(lowering.gemm(linear, "x", "y", rows, nodes=())[0], PORTABLE) for rows in sizes}
        assert len(texts) == 1


@pytest.mark.parametrize("rows", [4, 100])
def test_layers_of_several_sizes_share_a_shader(rows: int) -> None:
    """One text whose overrides are the sizes, and whether the layer is gated."""
    rng = np.random.default_rng(10)
    units = []
    for k, n, gated in ((2048, 64, False), (1088, 128, True), (4096, 512, False)):
        linear = make(rng, "q4", k, n, activation="int8", gated=gated).linear
        epilogue = Gated("silu") if gated else None
        kernel = lowering.gemm(linear, "x", "y", rows, nodes=(), epilogue=epilogue)[0]
        units.append(Unit("gemm", declarations(kernel, PORTABLE)))
    ((module, members),) = merged(units)
    assert members == (0, 1, 2)
    assert {each.name for each in module.entries} == {"main"}
    assert [dict(each.constants).get("GATED") for each in module.entries] == [None, 1, None]
    pipelines = [(each.name, dict(each.constants)) for each in module.entries]
    assert tint.check(finished(commented(module.text, {})), pipelines=pipelines) == []


def test_segments_write_their_ranges() -> None:
    """A weight over the binding limit: each segment is a dispatch into its part of one output."""
    rng = np.random.default_rng(8)
    whole = make(rng, "q4", 64, 64 + 13, bias=True, gated=False)
    bounds = [(0, 64), (64, 77)]
    scales = whole.params[:77].view(np.float16).reshape(77, 2)
    bias = whole.bias.astype(np.float16)
    linear = replace(whole.linear, segments=tuple(Segment(a, b, "weights", "params") for a, b in bounds))
    x, exact = activations(rng, whole)
    many, exact_many = activations(rng, whole, 3)
    shape = GemvShape(32, 16)
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


def test_what_has_no_kernel_is_refused() -> None:
    rng = np.random.default_rng(12)
    plain = make(rng, "q4", 32, 8).linear
    with pytest.raises(ValueError, match="int8 activations need"):
        lowering.gemv(replace(plain, format="f16", activation="int8"), "x", "y", nodes=())
    with pytest.raises(ValueError, match="gated"):
        lowering.gemv(plain, "x", "y", nodes=(), epilogue=Gated("silu"))
    with pytest.raises(ValueError, match="no epilogue Argmax"):
        lowering.gemm(plain, "x", "y", 4, nodes=(), epilogue=Argmax("v", "i"))
    epilogue = RopeAppend(1, 1, 6, 8, "k", "v")
    with pytest.raises(ValueError, match="multiples of 4"):
        lowering.gemv(replace(plain, n=18), "x", "y", nodes=(), epilogue=epilogue)
