"""Attention over a KV cache of fixed capacity: com.microsoft GroupQueryAttention and its kind.

Shapes and strides come from the capacity, which is a constant; only the length comes from GPU memory.

* `rope_append` rotates q and k of the new positions and writes k and v to the caches.
* `decode_attention` is for one position: the cache is read once, by many workgroups (flash-decoding).

`prefill_attention.py` is for a chunk of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..program import Access, Binding, Constant, DType, Grid, IndirectGrid, Kernel, Role, Tensor
from ..sequence import SEQUENCE
from ..shapes import GENERIC
from .quantize import quantized_scales

THREADS = 128
SEGMENTS = 16  # threads that share a head's softmax in decode attention
GROUP_LIMIT = THREADS // SEGMENTS  # query heads that one workgroup of decode attention can serve
REDUCE_FOURS = 8  # vec4s of a head per workgroup of the reduction: 32 values, one int8 block
REDUCE_SPLITS = 32  # splits that it merges at once
APPEND_THREADS = 64


@dataclass(frozen=True, slots=True)
class Attention:
    """What is fixed about the attention of one layer.

    `heads` query heads in groups of `heads // kv_heads` share a key and a value head. The caches are
    [kv_heads, capacity, head_size] of `cache_dtype`. `scale` 0 means 1 / sqrt(head_size). `softcap` c > 0
    turns a score s into c · tanh(s / c). `window` w > 0 limits a query at position p to the keys p - w + 1
    to p; -1 is no limit. `smooth_softmax` adds 1 to the softmax's denominator (as a score of 0 would),
    `head_sink` (the dtype of a tensor [heads]; None without one) adds e to a learned score per head.

    Rotary embedding as in `linear.RopeAppend`: `rotary_dim` 0 is none; one table [2 · table_rows,
    rotary_dim / 2], the cosines, then the sines; for LongRoPE each is [short; long] with `long_row` short
    rows, and the long ones are read when `sequence.call_length` > `long_threshold`.

    A workgroup of decode attention takes `tile` positions of the cache at a time, a power of two from
    `SEGMENTS` to `THREADS`; at most `splits` share a KV head's, tile by tile.
    """

    heads: int
    kv_heads: int
    head_size: int
    capacity: int
    cache_dtype: DType = DType.F16
    scale: float = 0.0
    softcap: float = 0.0
    window: int = -1
    smooth_softmax: bool = False
    head_sink: DType | None = None
    rotary_dim: int = 0
    table_rows: int = 0
    table_dtype: DType = DType.F16
    interleaved: bool = False
    long_threshold: int = 0
    long_row: int = 0
    tile: int = GENERIC.tile
    splits: int = GENERIC.splits

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads are no multiple of {self.kv_heads} key heads")
        if self.head_size % 4 or not 4 <= self.head_size <= 256:
            raise ValueError(f"head size {self.head_size}: it must be a multiple of 4 up to 256")
        if self.rotary_dim % 4 or self.rotary_dim > self.head_size:
            raise ValueError(f"rotary dimension {self.rotary_dim}: must be a multiple of 4 within the head")
        if self.window == 0 or self.window < -1:
            raise ValueError(f"window {self.window}: it must be positive, or -1 for none")

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def fours(self) -> int:
        """vec4s in a head."""
        return self.head_size // 4

    @property
    def served(self) -> int:
        """Query heads that one workgroup of decode attention serves: the whole group if it can."""
        return max(n for n in range(1, GROUP_LIMIT + 1) if self.group % n == 0)

    @property
    def n_splits(self) -> int:
        """Workgroups that share the cache of a KV head: fewer if so many tiles are never visible at once."""
        tiles = -(-self.capacity // self.tile)
        if self.window > 0:
            tiles = min(tiles, (self.window + self.tile - 2) // self.tile + 1)
        return min(tiles, self.splits)

    @property
    def decode_grid(self) -> Grid:
        """(head groups, visible splits, 1) with the cache full."""
        return (self.heads // self.served, self.n_splits, 1)


@dataclass(frozen=True, slots=True)
class Lowered:
    """Kernels in order, and the scratch tensors that they need besides those they were given."""

    kernels: tuple[Kernel, ...]
    tensors: tuple[Tensor, ...] = ()


def attention_grid(name: str) -> Tensor:
    """Three words: the grid of decode attention, for `--attention-dispatch indirect`.

    `rope_append` writes it. Layers of one window can share it; layers of different windows cannot.
    """
    return Tensor(name, DType.U32, (3,), Role.ACTIVATION)


def rope_append(
    attention: Attention,
    rows: int,
    *,
    qkv: str | tuple[str, str, str],
    q: str,
    k_cache: str,
    v_cache: str,
    nodes: tuple[str, ...],
    rope: str | None = None,
    grid: str | None = None,
) -> Lowered:
    """Rotate q into `q` f32 [rows, heads, head_size]; append rotated k, and v, to the caches.

    `qkv` is packed f32 [rows, (heads + 2 · kv_heads) · head_size], or three tensors [rows, n · head_size].
    Row r is position past_length + r; rows from `sequence.length` on, and positions from the capacity on,
    are not appended. `grid` (decode only) also gets the grid of the attention that follows. Separate q, k
    and v with a `grid` would need nine storage buffers, so q has a dispatch of its own then.
    """
    if bool(rope) != bool(attention.rotary_dim):
        raise ValueError("a rotary table and a rotary dimension go together")
    if grid and rows != 1:
        raise ValueError("the grid of decode attention is for one row")
    table = [Binding("rope", rope)] if rope else []
    state = [Binding("sequence", SEQUENCE)]
    q_out = [Binding("q", q, Access.READ_WRITE)]
    caches = [
        Binding("k_cache", k_cache, Access.READ_WRITE),
        Binding("v_cache", v_cache, Access.READ_WRITE),
    ]
    arguments = [Binding("attention_grid", grid, Access.READ_WRITE)] if grid else []
    if isinstance(qkv, str):
        sources = [Binding("qkv", qkv)]
        parts = [("rope_append", attention.heads + 2 * attention.kv_heads, sources + q_out + caches)]
    else:
        q_in, k_in, v_in = (Binding(f"{x}_in", tensor) for x, tensor in zip("qkv", qkv, strict=True))
        parts = [
            ("rope_append", attention.heads + 2 * attention.kv_heads, [q_in, k_in, v_in, *q_out, *caches])
        ]
        if grid:
            parts = [
                ("rope_q", attention.heads, [q_in, *q_out]),
                ("rope_append_kv", 2 * attention.kv_heads, [k_in, v_in, *caches]),
            ]
    return Lowered(
        tuple(
            Kernel(
                name=name,
                template="rope_append.wgsl.j2",
                workgroup=(APPEND_THREADS, 1, 1),
                grid=(-(-heads * attention.fours // APPEND_THREADS), rows, 1),
                bindings=(*state, *bindings, *table, *(arguments if bindings[-1] in caches else [])),
                constants=sorted_constants(
                    _rope_constants(attention),
                    window=max(attention.window, 0),
                    tile=attention.tile,
                    n_splits=attention.n_splits,
                    grid_x=attention.decode_grid[0],
                    rows=rows,
                ),
                nodes=nodes,
                work=rows * heads * attention.head_size,
            )
            for name, heads, bindings in parts
        )
    )


def decode_attention(
    attention: Attention,
    *,
    q: str,
    k_cache: str,
    v_cache: str,
    out: str,
    name: str,
    nodes: tuple[str, ...],
    head_sink: str | None = None,
    grid: str | None = None,
    out_int8: bool = False,
) -> Lowered:
    """One position: q f32 [heads, head_size] (rotated) over the cache to `out` f32 [heads · head_size].

    With `out_int8` (several splits, head size a multiple of 32) `out` is a `quantized_tensor` instead.

    The position is the last of the sequence, `total_length` - 1, and is in the cache. Scratch tensors are
    called `name`/...; `grid` names the `attention_grid` to run from instead of the worst case. Both forms
    run the same shader and give the same bits.
    """
    check_sink(attention, head_sink)
    sink = [Binding("head_sink", head_sink)] if head_sink else []
    inputs = [Binding("sequence", SEQUENCE), *(Binding(*b) for b in (("q", q), ("k_cache", k_cache)))]
    inputs.append(Binding("v_cache", v_cache))
    softmax = Tensor(f"{name}/softmax", DType.F32, (attention.heads, attention.n_splits, 2), Role.ACTIVATION)
    sums = Tensor(
        f"{name}/sums",
        DType.F32,
        (attention.heads, attention.n_splits, attention.head_size),
        Role.ACTIVATION,
    )
    single = attention.n_splits == 1
    target = [Binding("y", out, Access.READ_WRITE)]
    partials = [Binding(b.name.rsplit("/", 1)[1], b.name) for b in (softmax, sums)]
    written = [Binding(b.variable, b.tensor, Access.READ_WRITE) for b in partials]
    # Heads whose slices are summed at once: two, unless a wide group leaves memory for one only.
    batch = 2 if attention.served > 1 and attention.served * attention.fours < 512 else 1
    slices = THREADS // attention.fours
    parts = THREADS // attention.tile
    visible = attention.capacity if attention.window < 0 else min(attention.window, attention.capacity)
    decode = Kernel(
        name="attention_decode",
        template="attention_decode.wgsl.j2",
        workgroup=(THREADS, 1, 1),
        grid=IndirectGrid(grid) if grid else attention.decode_grid,
        bindings=(*inputs, *(sink + target if single else written)),
        constants=sorted_constants(
            softmax_constants(attention),
            served=attention.served,
            tile=attention.tile,
            n_splits=attention.n_splits,
            segments=SEGMENTS,
            parts=parts,
            slices=slices,
            key_loads=-(-attention.fours // parts),
            value_loads=-(-attention.tile // slices),
            batch=batch,
        ),
        nodes=nodes,
        workgroup_nbytes=16 * attention.served * attention.fours
        + 4 * attention.served * (THREADS + SEGMENTS + 1)
        + 16 * attention.tile * -(-attention.served // 4)
        + 16 * batch * slices * attention.fours,
        work=2 * attention.heads * visible * attention.head_size,
        worst_grid=attention.decode_grid if grid else None,
    )
    if single:
        return Lowered((decode,))
    slots = min(max(4, 1 << (attention.n_splits - 1).bit_length()), REDUCE_SPLITS)
    reduce = Kernel(
        name="attention_reduce",
        template="attention_reduce.wgsl.j2",
        workgroup=(REDUCE_FOURS * slots, 1, 1),
        grid=(attention.heads, -(-attention.fours // REDUCE_FOURS), 1),
        bindings=(Binding("sequence", SEQUENCE), *partials, *sink, *target),
        constants=sorted_constants(
            softmax_constants(attention),
            tile=attention.tile,
            n_splits=attention.n_splits,
            lanes=REDUCE_FOURS,
            slices=slots,
            turns=-(-attention.n_splits // slots),
            y_int8=out_int8,
            y_scales=quantized_scales(attention.heads * attention.head_size, 4 * REDUCE_FOURS),
        ),
        nodes=nodes,
        workgroup_nbytes=16 * (REDUCE_FOURS * slots + REDUCE_FOURS) + 8 * slots,
        work=attention.heads * attention.n_splits * attention.head_size,
    )
    return Lowered((decode, reduce), (softmax, sums))


def check_sink(attention: Attention, head_sink: str | None) -> None:
    """Raise ValueError unless there is a tensor of sinks where the layer has them, and only there."""
    if bool(head_sink) != (attention.head_sink is not None):
        raise ValueError("a head_sink tensor and its dtype go together")


def _rope_constants(attention: Attention) -> dict[str, Constant]:
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_size": attention.head_size,
        "capacity": attention.capacity,
        "cache_dtype": attention.cache_dtype.value,
        "rotary_dim": attention.rotary_dim,
        "half_rotary": attention.rotary_dim // 2,
        "interleaved": attention.interleaved,
        "table_rows": attention.table_rows,
        "table_dtype": attention.table_dtype.value,
        "long_threshold": attention.long_threshold,
        "long_row": attention.long_row,
    }


def softmax_constants(attention: Attention) -> dict[str, Constant]:
    """What the templates attention_* read."""
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "group": attention.group,
        "fours": attention.fours,
        "capacity": attention.capacity,
        "cache_dtype": attention.cache_dtype.value,
        "scale": attention.scale or 1 / sqrt(attention.head_size),
        "softcap": float(attention.softcap),
        "window": max(attention.window, 0),
        "smooth_softmax": attention.smooth_softmax,
        "sink_dtype": attention.head_sink.value if attention.head_sink else "",
    }


def sorted_constants(shared: dict[str, Constant], **own: Constant) -> tuple[tuple[str, Constant], ...]:
    return tuple(sorted({**shared, **own}.items()))
