"""Linear layers with random weights, for the tests of their kernels: bytes, and the same matrix in float64.

Tolerances are relative to the sum of |w · x| per output, which is what rounding grows with. Float: every
product and addition rounds once, in a tree of a few hundred terms, so 2e-6 (about 16 ulp of f32) is ample;
a wrong nibble, scale or column is 1e-3 and more. int8: the integers are exact, only scales and their sum
round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gpu import run_kernel
from webgpu_compile.compiler.lowering import linear as lowering
from webgpu_compile.compiler.lowering import linear_cpu
from webgpu_compile.compiler.lowering.linear_format import Linear, Segment
from webgpu_compile.compiler.lowering.quantize import quantized_tensor
from webgpu_compile.compiler.program import DType, Kernel
from webgpu_compile.compiler.sequence import N_WORDS, WORDS
from webgpu_compile.compiler.target import SPEC_LIMITS, Target

TOLERANCE = 2e-6

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
    assert tensor.shape == quantized_tensor("x", rows, k, block).shape
    values = q.astype(np.float64) * scale[..., None].astype(np.float64)
    return tensor, values.reshape(rows, -1)[:, :k]


def activations(
    rng: np.random.Generator, case: Case, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """x as the kernel takes it, and what it stands for in float64; one row without `rows`."""
    x = rng.normal(0, 1, (rows or 1, case.linear.k)).astype(np.float32)
    if case.linear.activation == "int8":
        tensor, values = quantized(x, case.linear.chunk)
        return tensor, values
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


def run_gemv(case: Case, target: Target, x: np.ndarray, **options: Any) -> np.ndarray:
    if target.cpu:
        return run_product(case, target, x, **options)
    [kernel] = lowering.gemv(case.linear, "x", "y", nodes=("n",), **options)
    y = np.full((1, case.linear.n), np.nan, np.float32)
    return run(kernel, target, case.arrays(x=x, y=y, sequence=words()))["y"]


def run_gemm(
    case: Case, target: Target, x: np.ndarray, length: int | None = None, **options: Any
) -> np.ndarray:
    if target.cpu:
        return run_product(case, target, x, length, epilogue=options.get("epilogue"))
    [kernel] = lowering.gemm(case.linear, "x", "y", len(x), nodes=("n",), **options)
    y = np.full((len(x), case.linear.n), np.nan, np.float32)
    state = words(length=len(x) if length is None else length)
    return run(kernel, target, case.arrays(x=x, y=y, sequence=state))["y"]


def run_product(
    case: Case, target: Target, x: np.ndarray, length: int | None = None, **options: Any
) -> np.ndarray:
    [kernel] = linear_cpu.product(case.linear, "x", "y", len(x), nodes=("n",), **options)
    y = np.full((len(x), case.linear.n), np.nan, np.float32)
    state = words(length=len(x) if length is None else length)
    return run(kernel, target, case.arrays(x=x, y=y, sequence=state))["y"]
