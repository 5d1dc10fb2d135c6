"""A `Linear` from a model's initializers: which tensors it becomes, in which layout of `weights.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..program import DType
from .builder import Builder, split_rows
from .linear import Linear, Segment


@dataclass(frozen=True, slots=True)
class Part:
    """Initializers (storage keys) of `n` rows of a `Linear`: `weights` is MatMulNBits' B or MatMul's B."""

    n: int
    weights: str
    scales: str | None = None
    zero_points: str | None = None
    bias: str | None = None


def q4_linear(
    builder: Builder,
    parts: Sequence[Part],
    *,
    k: int,
    block_size: int,
    scale_dtype: DType = DType.F16,
    bias_dtype: DType = DType.F16,
    gated: bool = False,
    activation: str = "f32",
) -> Linear:
    """MatMulNBits weights, or several on the same x, one after the other (q, k, v; gate, up when `gated`).

    The bytes are those of the model, so a tied embedding shares the tensors: one part without zero points
    and bias is the weights and the scales under the names and layout "copy" of `Builder.weight`.
    """
    raise NotImplementedError


def dense_linear(
    builder: Builder,
    parts: Sequence[Part],
    *,
    k: int,
    dtype: DType,
    bias_dtype: DType = DType.F16,
    gated: bool = False,
    transposed: bool = False,
) -> Linear:
    """MatMul weights [k, n] (or [n, k] when `transposed`, as Gemm's transB and an embedding table)."""
    raise NotImplementedError
