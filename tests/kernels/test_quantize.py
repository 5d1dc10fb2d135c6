"""f32 rows to int8 blocks, and the whole way through a 4-bit layer."""

from __future__ import annotations

import numpy as np
import pytest
from gpu import ALL_TARGETS
from linear_cases import (
    make,
    quantized,
    run,
    run_gemm,
    words,
)
from webgpu_compile.compiler.lowering.quantize import quantize, quantized_tensor
from webgpu_compile.compiler.target import TARGETS, Target

PORTABLE = TARGETS["portable"]
SUBGROUPS = TARGETS["subgroups"]
EVERY_TARGET = pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.name)


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
    kernel = quantize("x", "y", rows, k, block, nodes=())
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
    kernel = quantize("x", "y", 5, 512, 32, nodes=(), sequence=None)
    empty = np.zeros(quantized_tensor("y", 5, 512, 32).shape, np.uint32)
    got = run_gemm(case, PORTABLE, run(kernel, PORTABLE, {"x": x, "y": empty})["y"])
    want = x.astype(np.float64) @ case.w.T
    assert np.abs(got - want).max() < 0.01 * np.sqrt((want**2).mean()) * 4
