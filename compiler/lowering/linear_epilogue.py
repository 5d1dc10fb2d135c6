"""What happens to a finished dot product of a linear layer, and which kernels there are."""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Access, Binding, Constant, DType
from ..target import SPEC_LIMITS
from .linear_format import Linear


@dataclass(frozen=True, slots=True)
class Plain:
    """y [rows, n] f32, with the bias where there is one."""


@dataclass(frozen=True, slots=True)
class Gated:
    """y = act(gate) · up, f32 [rows, n], of a gated `Linear`. `act`: "silu", "gelu" (erf), "gelu_tanh"."""

    act: str


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


Epilogue = Plain | Gated | Argmax | RopeAppend


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
    n_bindings = 3 + (linear.segments[0].params is not None) + len(outputs(epilogue, ""))
    if n_bindings > SPEC_LIMITS["max-storage-buffers-per-shader-stage"]:
        raise ValueError(f"{n_bindings} storage buffers")


def epilogue_constants(epilogue: Epilogue) -> dict[str, Constant]:
    match epilogue:
        case Gated(act):
            if act not in ("silu", "gelu", "gelu_tanh"):
                raise ValueError(f"no gate activation {act!r}")
            return {"epilogue": "gated", "act": act}
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


def outputs(epilogue: Epilogue, y: str) -> list[Binding]:
    bindings = [Binding("y", y, Access.READ_WRITE)]
    if isinstance(epilogue, Argmax):
        bindings.append(Binding("partial_values", epilogue.values, Access.READ_WRITE))
        bindings.append(Binding("partial_indices", epilogue.indices, Access.READ_WRITE))
    if isinstance(epilogue, RopeAppend):
        bindings.append(Binding("k_cache", epilogue.k_cache, Access.READ_WRITE))
        bindings.append(Binding("v_cache", epilogue.v_cache, Access.READ_WRITE))
        if epilogue.rope:
            bindings.append(Binding("rope", epilogue.rope))
    return bindings
