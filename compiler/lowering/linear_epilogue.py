"""What happens to a finished dot product of a linear layer, and which kernels there are."""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Access, Binding, Constant, DType
from ..target import SPEC_LIMITS
from .linear_format import Linear
from .quantize import quantized_scales, quantized_squares


@dataclass(frozen=True, slots=True)
class Plain:
    """y [rows, n] f32, with the bias where there is one."""


@dataclass(frozen=True, slots=True)
class Gated:
    """y = act(gate) · up, f32 [rows, n], of a gated `Linear`. `act`: "silu", "gelu" (erf), "gelu_tanh".

    `y_block`: y is a `quantized_tensor` in blocks of so many (GEMV only), one per workgroup.
    """

    act: str
    y_block: int = 0


@dataclass(frozen=True, slots=True)
class Residual:
    """residual + x · Wᵀ (GEMV with int8 activations only): `sum_out` f32 [1, n] gets it where it is read.

    y is the sum times the weight of the RMSNorm that follows, as a `quantized_tensor` with sums of squares:
    a workgroup knows only its own part of the row, so the norm's factor is left to the readers of y
    (`x_epsilon` of `gemv`). That saves the norm's dispatch. A workgroup writes one `block`.
    """

    residual: str
    norm_weight: str
    norm_dtype: DType
    block: int
    sum_out: str | None = None


@dataclass(frozen=True, slots=True)
class Argmax:
    """y, and per workgroup its greatest entry, for the head of a language model (GEMV only).

    `values` f32 and `indices` u32, both [n_partials(linear)]. Of equal values the lowest index wins. A value
    written there is finite: NaN and +inf count as the greatest f32, -inf as the least, so that whoever
    compares them meets no NaN and always finds an index.
    """

    values: str
    indices: str


@dataclass(frozen=True, slots=True)
class RopeAppend:
    """Packed QKV of one position: q rotated into y f32 [heads, head_size], k rotated and v into the caches.

    The position is `sequence.past_length`; at `capacity` or above nothing is appended.
    Caches: [kv_heads, capacity, head_size] f16 or f32.

    `rope`: one table [2 · table_rows, rotary_dim / 2], f16 or f32: the cosines, then the sines (layout
    "concat_rows" of the two). For LongRoPE each of the two is [short; long] with `long_row` short rows,
    and the long ones are read when `sequence.call_length` > `long_threshold`.
    """

    heads: int
    kv_heads: int
    head_size: int
    capacity: int
    k_cache: str
    v_cache: str
    cache_dtype: DType = DType.F16
    rope: str | None = None
    rotary_dim: int = 0
    table_rows: int = 0
    table_dtype: DType = DType.F16
    interleaved: bool = False
    long_threshold: int = 0
    long_row: int = 0


Epilogue = Plain | Gated | Argmax | RopeAppend | Residual


def check(linear: Linear, epilogue: Epilogue) -> None:
    """Raise ValueError where there is no kernel for `linear` with `epilogue`."""
    if linear.activation == "int8" and linear.format != "q4":
        raise ValueError(f"int8 activations need 4-bit weights, not {linear.format}")
    if linear.gated != isinstance(epilogue, Gated):
        raise ValueError("the epilogue Gated goes with a gated Linear, and only with one")
    if isinstance(epilogue, RopeAppend):
        if len(linear.segments) != 1:
            raise ValueError("a QKV projection over the binding limit cannot append to the cache itself")
        if linear.n != (epilogue.heads + 2 * epilogue.kv_heads) * epilogue.head_size:
            raise ValueError("n is not (heads + 2 * kv_heads) * head_size")
        if epilogue.head_size % 4 or epilogue.rotary_dim % 4:
            raise ValueError("head size and rotary dimension must be multiples of 4: four rows go together")
        if bool(epilogue.rope) != bool(epilogue.rotary_dim):
            raise ValueError("a rotary table and a rotary dimension go together")
    y_block = _y_block(epilogue)
    if y_block and (len(linear.segments) != 1 or linear.n % y_block or linear.activation != "int8"):
        raise ValueError("int8 outputs are for int8 layers in one segment, in whole blocks")
    n_bindings = 3 + (linear.segments[0].params is not None) + len(outputs(epilogue, ""))
    if n_bindings > SPEC_LIMITS["max-storage-buffers-per-shader-stage"]:
        raise ValueError(f"{n_bindings} storage buffers")


def epilogue_constants(epilogue: Epilogue, linear: Linear) -> dict[str, Constant]:
    y_block = _y_block(epilogue)
    int8: dict[str, Constant] = {}
    if y_block:
        int8 = {
            "y_block": y_block,
            "y_scales": quantized_scales(linear.n, y_block),
            "y_squares": quantized_squares(linear.n, y_block),
        }
    match epilogue:
        case Gated(act):
            if act not in ("silu", "gelu", "gelu_tanh"):
                raise ValueError(f"no gate activation {act!r}")
            return {"epilogue": "gated", "act": act, "y_int8": bool(y_block), **int8}
        case Residual():
            padding = -(linear.n // y_block) % 4
            return {
                "epilogue": "residual",
                "norm_dtype": epilogue.norm_dtype.value,
                "y_padding": padding,
                **int8,
            }
        case Argmax():
            return {"epilogue": "argmax"}
        case RopeAppend():
            return {
                "epilogue": "rope",
                "heads": epilogue.heads,
                "kv_heads": epilogue.kv_heads,
                "head_size": epilogue.head_size,
                "capacity": epilogue.capacity,
                "cache_dtype": epilogue.cache_dtype.value,
                "rotary_dim": epilogue.rotary_dim,
                "half_rotary": epilogue.rotary_dim // 2,
                "interleaved": epilogue.interleaved,
                "table_rows": epilogue.table_rows,
                "table_dtype": epilogue.table_dtype.value,
                "long_threshold": epilogue.long_threshold,
                "long_row": epilogue.long_row,
            }
    return {"epilogue": "plain"}


def _y_block(epilogue: Epilogue) -> int:
    """Outputs in an int8 block; 0 where they are f32."""
    if isinstance(epilogue, Residual):
        return epilogue.block
    return epilogue.y_block if isinstance(epilogue, Gated) else 0


def outputs(epilogue: Epilogue, y: str) -> list[Binding]:
    bindings = [Binding("y", y, Access.READ_WRITE)]
    if isinstance(epilogue, Residual):
        bindings.append(Binding("residual", epilogue.residual))
        bindings.append(Binding("norm_weight", epilogue.norm_weight))
        if epilogue.sum_out:
            bindings.append(Binding("sum_out", epilogue.sum_out, Access.READ_WRITE))
    if isinstance(epilogue, Argmax):
        bindings.append(Binding("partial_values", epilogue.values, Access.READ_WRITE))
        bindings.append(Binding("partial_indices", epilogue.indices, Access.READ_WRITE))
    if isinstance(epilogue, RopeAppend):
        bindings.append(Binding("k_cache", epilogue.k_cache, Access.READ_WRITE))
        bindings.append(Binding("v_cache", epilogue.v_cache, Access.READ_WRITE))
        if epilogue.rope:
            bindings.append(Binding("rope", epilogue.rope))
    return bindings
