"""Attention where a CPU plays the GPU (`Target.cpu`): the same kernel for one position and for a chunk.

A workgroup takes a position and a KV head, from the first key to the last, so that nothing is left to merge:
cores are few there, and idle workgroups, barriers and written-out loops cost what they do not on a GPU.
"""

from __future__ import annotations

from ..program import Access, Binding, Kernel
from ..sequence import SEQUENCE
from .attention import Attention, Lowered, check_sink, softmax_constants, sorted_constants

WEIGHTS = 128  # in workgroup memory: SwiftShader takes 0.6 ms to compile each
LEAST_THREADS = 8  # and a thread per vec4 of a head


def attention_cpu(
    attention: Attention,
    rows: int,
    *,
    q: str,
    k_cache: str,
    v_cache: str,
    out: str,
    nodes: tuple[str, ...],
    head_sink: str | None = None,
) -> Lowered:
    """q f32 [rows, heads, head_size] (rotated) over the cache to `out` f32 [rows, heads · head_size].

    Row r is position past_length + r and sees the cache up to itself; the rows are already in the cache.
    Rows from `sequence.length` on are left unwritten, and all once `sequence.stop` is set.
    """
    check_sink(attention, head_sink)
    inputs = (("sequence", SEQUENCE), ("q", q), ("k_cache", k_cache), ("v_cache", v_cache))
    sink = [Binding("head_sink", head_sink)] if head_sink else []
    tile = max(WEIGHTS // attention.served, 16)
    kernel = Kernel(
        name="attention",
        template="attention_cpu.wgsl.j2",
        workgroup=(max(attention.fours, LEAST_THREADS), 1, 1),
        grid=(attention.heads // attention.served, rows, 1),
        bindings=(*(Binding(*b) for b in inputs), *sink, Binding("y", out, Access.READ_WRITE)),
        constants=sorted_constants(softmax_constants(attention), served=attention.served, tile=tile),
        nodes=nodes,
        workgroup_nbytes=4 * attention.served * (tile + 1),
        work=2 * rows * attention.heads * attention.capacity * attention.head_size,
    )
    return Lowered((kernel,))
