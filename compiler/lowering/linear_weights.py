"""A `Linear` from a model's initializers: which tensors it becomes, in which layout of `weights.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..program import DType, Role, Source, Weight
from .builder import Builder, split_rows
from .linear_format import Linear, Segment, params_words


@dataclass(frozen=True, slots=True)
class Part:
    """Initializers (names, as `Initializers.name_of` gives them) of `n` rows of a `Linear`.

    `weights` is MatMulNBits' or MatMul's B. Either all parts of a `Linear` have a bias or none has;
    likewise zero points.
    """

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

    The bytes are those of the model, so a tied embedding shares the tensors: of a single part the weights
    are the tensor that `Builder.weight` makes of B (u8, layout "copy", under the initializer's name), and
    so are the scales where there are neither zero points nor a bias.
    """
    linear = _linear(parts, "q4", k, gated, bias_dtype)
    linear = replace(linear, block_size=block_size, scale_dtype=scale_dtype, activation=activation)
    row_shape = (linear.n_blocks, block_size // 2)
    return _with_segments(builder, linear, parts, DType.U8, row_shape, "concat_rows")


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
    linear = _linear(parts, dtype.value, k, gated, bias_dtype)
    layout = "transpose"
    if transposed:
        layout = "concat_rows" if linear.padded_k == k else "pad_rows"
    return _with_segments(builder, linear, parts, dtype, (linear.padded_k,), layout)


def _linear(parts: Sequence[Part], weight_format: str, k: int, gated: bool, bias_dtype: DType) -> Linear:
    if gated and (len(parts) != 2 or parts[0].n != parts[1].n):
        raise ValueError("a gated Linear has two parts of the same size: gate and up")
    for attribute in ("scales", "zero_points", "bias"):
        if len({getattr(part, attribute) is None for part in parts}) != 1:
            raise ValueError(f"some parts of a Linear have {attribute}, and some have not")
    if weight_format == "q4" and parts[0].scales is None:
        raise ValueError("4-bit weights need scales")
    return Linear(
        weight_format,
        k,
        parts[0].n if gated else sum(part.n for part in parts),
        segments=(),
        zero_points=parts[0].zero_points is not None,
        bias=parts[0].bias is not None,
        bias_dtype=bias_dtype,
        gated=gated,
    )


def _with_segments(
    builder: Builder,
    linear: Linear,
    parts: Sequence[Part],
    dtype: DType,
    row_shape: tuple[int, ...],
    layout: str,
) -> Linear:
    """Declare the weights of `linear`, in as many segments as the binding limit asks for."""
    row_nbytes = dtype.nbytes
    for size in row_shape:
        row_nbytes *= size
    row_nbytes = max(row_nbytes, 4 * params_words(linear, 64)[2] // 64)
    ranges = split_rows(linear.n, row_nbytes * (2 if linear.gated else 1))
    if len(ranges) > 1 and len(parts) > 1 and not linear.gated:
        raise ValueError("parts joined along n cannot be over the binding limit: lower them one by one")
    segments = []
    for begin, end in ranges:
        rows = (begin, end) if len(ranges) > 1 else None
        n_rows = (end - begin) * (2 if linear.gated else 1)
        one = layout == "concat_rows" and len(parts) == 1
        weights = _declare(
            builder,
            "copy" if one else layout,
            dtype,
            (n_rows, *row_shape),
            [part.weights for part in parts],
            rows,
        )
        segments.append(Segment(begin, end, weights, _params(builder, linear, parts, n_rows, rows)))
    return replace(linear, segments=tuple(segments))


def _params(
    builder: Builder, linear: Linear, parts: Sequence[Part], n_rows: int, rows: tuple[int, int] | None
) -> str | None:
    """Declare the parameters of one segment: the model's own scales where nothing else is with them."""
    sections = [
        [name for part in parts if (name := getattr(part, attribute)) is not None]
        for attribute in ("scales", "zero_points", "bias")
    ]
    sections = [section for section in sections if section]
    if not sections:
        return None
    names = [name for section in sections for name in section]
    fill: tuple[tuple[str, int | float], ...] = (("n_rows", parts[0].n),) if rows else ()
    if len(names) == 1 and linear.n_blocks:
        return _declare(builder, "copy", linear.scale_dtype, (n_rows, linear.n_blocks), names, rows, fill)
    fill += tuple(("section", len(section)) for section in sections)
    shape = (params_words(linear, n_rows)[2],)
    return _declare(builder, "sections", DType.U32, shape, names, rows, fill)


def _declare(
    builder: Builder,
    layout: str,
    dtype: DType,
    shape: tuple[int, ...],
    sources: Sequence[str],
    rows: tuple[int, int] | None,
    fill: tuple[tuple[str, int | float], ...] = (),
) -> str:
    """A weight under the name that `Builder.weight` would give it; the same weight twice is one."""
    name = "+".join(sources) + ("" if layout == "copy" else f":{layout}")
    name += f"[{rows[0]}:{rows[1]}]" if rows else ""
    weight = builder.weights.get(name)
    if weight is None:
        tensor = builder.tensor(name, dtype, shape, Role.WEIGHT)
        builder.weights[name] = Weight(tensor, layout, tuple(map(Source, sources)), rows, fill)
    else:
        builder.tensors[name] = weight.tensor
    return name
