"""Attention of a chunk of positions over the KV cache, in tiles (FlashAttention-2).

A workgroup takes one KV head and a tile of (row, query head) pairs of its group. The keys of a tile are dealt
out to several workgroups, the lanes (flash-decoding): a short chunk would otherwise leave most of the GPU
idle, and a long one has few tiles. Lane i takes every tile of keys whose number is i modulo the lanes, and
`attention_merge` adds the lanes up. Which keys a lane sums, and in which order, depends on positions only, so
that a row has the same bits in a chunk of any size.
"""

from __future__ import annotations

from ..program import Access, Binding, DType, Kernel, Role, Tensor
from ..sequence import SEQUENCE
from .attention import Attention, Lowered, check_sink, softmax_constants, sorted_constants
from .quantize import quantized_scales, quantized_tensor

TILE_PAIRS, TILE_KEYS = 64, 32
TILE_FOURS = 4  # vec4s of a head that are staged in workgroup memory at a time
MOST_LANES = 8
MERGE_THREADS = 64
INT8_BLOCK = 32
SCRATCH_NBYTES = 64 << 20
"""Most memory for the lanes' sums: half of WebGPU's limit for a binding."""


def n_lanes(attention: Attention, most_rows: int) -> int:
    """How many workgroups share the keys of a tile. It must be one number for all chunks of a model.

    `most_rows`: rows of its largest chunk, which decides how much memory the lanes' sums take.
    """
    lane_nbytes = most_rows * attention.heads * attention.head_size * 4
    n_tiles = -(-attention.capacity // TILE_KEYS)
    lanes = MOST_LANES
    while lanes > 1 and (lanes * lane_nbytes > SCRATCH_NBYTES or lanes >= 2 * n_tiles):
        lanes //= 2
    return lanes


def prefill_attention(
    attention: Attention,
    rows: int,
    *,
    q: str,
    k_cache: str,
    v_cache: str,
    out: str,
    name: str,
    nodes: tuple[str, ...],
    lanes: int = MOST_LANES,
    head_sink: str | None = None,
    out_int8: bool = False,
) -> Lowered:
    """A chunk: q f32 [rows, heads, head_size] (rotated) to `out` f32 [rows, heads · head_size].

    With `out_int8` (head size a multiple of 32) `out` is a `quantized_tensor` instead. Row r is position
    past_length + r and sees the cache up to itself; the chunk is already in the cache. Rows from
    `sequence.length` on are left unwritten, and the shaders do not depend on `rows`. Scratch tensors are
    called `name`/...
    """
    check_sink(attention, head_sink)
    fours = attention.fours
    along = next(
        n for n in (8, 16, 32) if fours <= 2 * n
    )  # threads that share a tile's keys, and a head's vec4s
    softmax = Tensor(f"{name}/softmax", DType.F32, (rows, attention.heads, lanes, 2), Role.ACTIVATION)
    sums = Tensor(
        f"{name}/sums", DType.F32, (rows, attention.heads, lanes, attention.head_size), Role.ACTIVATION
    )
    inputs = (("sequence", SEQUENCE), ("q", q), ("k_cache", k_cache), ("v_cache", v_cache))
    partials = (("softmax", softmax.name), ("sums", sums.name))
    quads = TILE_PAIRS // 4
    prefill = Kernel(
        name="attention_prefill",
        template="attention_prefill.wgsl.j2",
        workgroup=(along * TILE_PAIRS // 8, 1, 1),
        grid=(attention.kv_heads, -(-rows * attention.group // TILE_PAIRS), lanes),
        bindings=(*(Binding(*b) for b in inputs), *(Binding(*b, Access.READ_WRITE) for b in partials)),
        constants=sorted_constants(
            softmax_constants(attention),
            lanes=lanes,
            tile_pairs=TILE_PAIRS,
            tile_keys=TILE_KEYS,
            tile_fours=TILE_FOURS,
            thread_keys=TILE_KEYS // along,
            columns=-(-fours // along),
            value_unroll=8,
        ),
        nodes=nodes,
        workgroup_nbytes=16
        * (max(4 * TILE_FOURS * (quads + 1), TILE_KEYS * quads) + TILE_KEYS * (TILE_FOURS + 1) + quads),
        work=2 * rows * attention.heads * attention.capacity * attention.head_size,
    )
    sink = [Binding("head_sink", head_sink)] if head_sink else []
    width = attention.heads * attention.head_size
    merge = Kernel(
        name="attention_merge",
        template="attention_merge.wgsl.j2",
        workgroup=(MERGE_THREADS, 1, 1),
        grid=(-(-width // 4 // MERGE_THREADS), rows, 1),
        bindings=(
            Binding("sequence", SEQUENCE),
            *(Binding(*b) for b in partials),
            *sink,
            Binding("y", out, Access.READ_WRITE),
        ),
        constants=sorted_constants(
            softmax_constants(attention),
            lanes=lanes,
            y_int8=out_int8,
            y_stride=quantized_tensor("", 1, width, INT8_BLOCK).shape[1],
            y_scales=quantized_scales(width, INT8_BLOCK),
        ),
        nodes=nodes,
        workgroup_nbytes=16 * MERGE_THREADS if out_int8 else 0,
        work=rows * lanes * width,
    )
    return Lowered((prefill, merge), (softmax, sums))
