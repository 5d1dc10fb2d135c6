"""Operators outside decoders, each compiled, run on the GPU and compared with ONNX Runtime's CPU answer.

Tolerance for f32: 2e-6 relative to the largest magnitude where the GPU's own functions are exact to a few
ulp (WGSL allows exp and log 3 + 2|x| ulp); 1e-5 for erf, whose approximation is good to 1.5e-7 absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import webgpu_compile
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPE = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
ONNX_TYPE |= {"int32": TensorProto.INT32, "bool": TensorProto.BOOL}

rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng.normal(0, 2, shape).astype(np.float32)


def integers(*shape: int, dtype: type = np.int64) -> np.ndarray:
    return rng.integers(-1000, 1000, shape).astype(dtype)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    outputs: dict[str, tuple[str, tuple[int, ...]]],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    def port(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ONNX_TYPE[dtype], list(shape))

    graph = helper.make_graph(
        list(nodes),
        "ops",
        [port(name, array.dtype.name, array.shape) for name, array in inputs.items()],
        [port(name, dtype, shape) for name, (dtype, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def check(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path, tolerance: float = 2e-6
) -> None:
    """Both variants against ONNX Runtime; dtypes and shapes too."""
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
    webgpu_compile.compile(path, folder / "out")
    for variant in ("portable", "f16-subgroups"):
        with webgpu_compile.load(folder / "out", variant=variant) as session:
            results = session.run(inputs)
        for port, want in zip(model.graph.output, expected, strict=True):
            got = results[port.name]
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            if want.dtype.kind == "f":
                scale = max(float(np.abs(want[np.isfinite(want)]).max(initial=0.0)), 1e-3)
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)
            else:
                np.testing.assert_array_equal(got, want)


UNARY = {
    "Abs": floats(3, 5),
    "Ceil": floats(7),
    "Cos": floats(2, 3),
    "Exp": floats(3, 3),
    "Floor": floats(4, 1),
    "Log": np.abs(floats(3, 4)) + 0.1,
    "Neg": floats(1, 1, 1),
    "Reciprocal": np.abs(floats(5)) + 0.5,
    "Relu": floats(2, 2, 2),
    "Round": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999], np.float32),
    "Sigmoid": np.array([-200, -20, -1, 0, 1, 20, 200], np.float32),
    "Sign": np.array([-3, 0, 2.5], np.float32),
    "Sin": floats(13),
    "Softplus": np.array([-200, -1, 0, 1, 200], np.float32),
    "Sqrt": np.abs(floats(3, 3)),
    "Tanh": np.array([-200, -90, -1, 0, 1e-3, 90, 3e38], np.float32),
}


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str, tmp_path: Path) -> None:
    x = UNARY[op]
    model = model_of([helper.make_node(op, ["x"], ["y"])], {"x": x}, {"y": ("float32", x.shape)})
    # sin and cos: WGSL promises 2^-11 absolute only, and only within [-π, π].
    check(model, {"x": x}, tmp_path, 5e-4 if op in ("Sin", "Cos") else 4e-6)


def test_erf(tmp_path: Path) -> None:
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    model = model_of([helper.make_node("Erf", ["x"], ["y"])], {"x": x}, {"y": ("float32", x.shape)})
    check(model, {"x": x}, tmp_path, 1e-5)


GELUS = {
    "Gelu": ("", {}),
    "Gelu-tanh": ("", {"approximate": "tanh"}),
    "Gelu-microsoft": ("com.microsoft", {}),
    "FastGelu": ("com.microsoft", {}),
    "QuickGelu": ("com.microsoft", {}),
    "QuickGelu-negative": ("com.microsoft", {"alpha": -0.5}),
}


@pytest.mark.parametrize("case", GELUS)
def test_gelu(case: str, tmp_path: Path) -> None:
    x = np.concatenate([np.linspace(-6, 6, 101), [-200, 200]]).astype(np.float32)
    domain, attributes = GELUS[case]
    node = helper.make_node(case.partition("-")[0], ["x"], ["y"], domain=domain, **attributes)
    model = model_of([node], {"x": x}, {"y": ("float32", x.shape)})
    model.opset_import.add(domain="com.microsoft", version=1)
    check(model, {"x": x}, tmp_path, 1e-5)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 5), (3, 5)),
        ((2, 3, 4), (4,)),
        ((2, 3, 4), (3, 1)),
        ((5,), (7, 1)),
        ((1, 1), (2, 3)),
        ((4, 1, 3), (1, 5, 1)),
    ],
)
def test_broadcasting(op: str, a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    inputs = {"a": floats(*a), "b": np.abs(floats(*b)) + 0.5}
    shape = np.broadcast_shapes(a, b)
    model = model_of([helper.make_node(op, ["a", "b"], ["y"])], inputs, {"y": ("float32", shape)})
    check(model, inputs, tmp_path)


def test_integers_and_their_division(tmp_path: Path) -> None:
    """int64 arithmetic that provably fits 32 bits; division truncates towards zero for both signs."""
    x = np.array([[True, False, True], [False, False, True]])
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["i", "factor"], ["p"]),
        helper.make_node("Sub", ["p", "offset"], ["s"]),
        helper.make_node("Div", ["s", "divisor"], ["q"]),
        helper.make_node("Neg", ["q"], ["n"]),
        helper.make_node("Abs", ["n"], ["z"]),
    ]
    constants = {"factor": np.array([100, 41, -23]), "offset": np.array(50), "divisor": np.array([7, -3, 9])}
    model = model_of(nodes, {"x": x}, {"q": ("int64", (2, 3)), "z": ("int64", (2, 3))}, constants)
    check(model, {"x": x}, tmp_path)


def test_integers_that_may_not_fit_are_refused(tmp_path: Path) -> None:
    a, b = integers(3), integers(3)
    model = model_of([helper.make_node("Add", ["a", "b"], ["y"])], {"a": a, "b": b}, {"y": ("int64", (3,))})
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(webgpu_compile.CompileError, match="more than 32 bits hold"):
        webgpu_compile.compile(tmp_path / "model.onnx", tmp_path / "out")


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_comparisons_and_where(op: str, dtype: type, tmp_path: Path) -> None:
    a, b = integers(6, 5).astype(dtype), integers(5).astype(dtype)
    a[0] = b  # equals too
    nodes = [
        helper.make_node(op, ["a", "b"], ["c"]),
        helper.make_node("Not", ["c"], ["n"]),
        helper.make_node("Where", ["n", "a", "b"], ["y"]),
    ]
    name = np.dtype(dtype).name
    model = model_of(nodes, {"a": a, "b": b}, {"c": ("bool", (6, 5)), "y": (name, (6, 5))})
    check(model, {"a": a, "b": b}, tmp_path)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str, tmp_path: Path) -> None:
    inputs = {"a": np.array([True, True, False, False]), "b": np.array([True, False, True, False])}
    model = model_of([helper.make_node(op, ["a", "b"], ["y"])], inputs, {"y": ("bool", (4,))})
    check(model, inputs, tmp_path)


CASTS = {
    "int64 to float32": (integers(3, 7), "float32"),
    "int64 to float16": (integers(9) % 1000, "float16"),
    "int64 to int32": (integers(5), "int32"),
    "int32 to int64": (integers(5, dtype=np.int32), "int64"),
    "int64 to bool": (np.array([0, 1, -5], np.int64), "bool"),
    "float32 to int32": (np.array([-2.9, -0.5, 0.5, 2.9, 1e6], np.float32), "int32"),
    "float32 to bool": (np.array([0.0, -0.0, 1e-30, 3.0], np.float32), "bool"),
    "bool to float32": (np.array([True, False]), "float32"),
    "bool to int64": (np.array([True, False]), "int64"),
    "float32 to float16": (floats(33), "float16"),
}


@pytest.mark.parametrize("name", CASTS)
def test_cast(name: str, tmp_path: Path) -> None:
    """The int64 Cast that conventional runtimes send to the CPU, and its kin: on the GPU, with checks."""
    x, to = CASTS[name]
    node = helper.make_node("Cast", ["x"], ["y"], to=ONNX_TYPE[to])
    model = model_of([node], {"x": x}, {"y": (to, x.shape)})
    check(model, {"x": x}, tmp_path, 0.0)


def test_int64_input_out_of_range_is_refused(tmp_path: Path) -> None:
    x = np.array([1], np.int64)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    onnx.save(model_of([node], {"x": x}, {"y": ("float32", (1,))}), str(tmp_path / "model.onnx"))
    webgpu_compile.compile(tmp_path / "model.onnx", tmp_path / "out")
    with (
        webgpu_compile.load(tmp_path / "out") as session,
        pytest.raises(webgpu_compile.RuntimeFailure, match="'x'"),
    ):
        session.run({"x": np.array([2**31], np.int64)})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gather_rows_with_negative_ids(dtype: type, tmp_path: Path) -> None:
    table, ids = floats(11, 3).astype(dtype), np.array([[0, 10, -1], [-11, 5, 5]], np.int64)
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    model = model_of([node], {"ids": ids}, {"y": (np.dtype(dtype).name, (2, 3, 3))}, {"table": table})
    check(model, {"ids": ids}, tmp_path, 0.0)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 129, 7), (3, 64, 65), (70, 33, 2)])
def test_matmul_and_views(m: int, k: int, n: int, tmp_path: Path) -> None:
    x, w, bias = floats(m, k), floats(k, n), floats(n)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["q"]),
        helper.make_node("Unsqueeze", ["q", "axes"], ["u"]),
        helper.make_node("Reshape", ["u", "shape"], ["r"]),
        helper.make_node("Identity", ["r"], ["i"]),
        helper.make_node("Neg", ["i"], ["y"]),
    ]
    constants = {"w": w, "bias": bias, "axes": np.array([0]), "shape": np.array([-1])}
    model = model_of(nodes, {"x": x}, {"y": ("float32", (m * n,))}, constants)
    # k products of magnitude ~4 in another order of summation.
    check(model, {"x": x}, tmp_path, 1e-5)


def test_more_than_65535_workgroups(tmp_path: Path) -> None:
    x = floats(65536 * 256 + 3)
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], {"x": x}, {"y": ("float32", x.shape)})
    check(model, {"x": x}, tmp_path, 0.0)
