"""GroupQueryAttention, alone and fused with the projection to queries, keys and values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
import onnx_graphsurgeon as gs

from ..importer.external import storage_key
from ..passes.function_bodies import INT8_BLOCK
from ..passes.rotary_cache import constants_of_where
from ..program import DType, Kernel, Role, Source, Tensor, Weight
from .attention import (
    Attention,
    Lowered,
    attention_grid,
    decode_attention,
    rope_append,
)
from .attention_cpu import attention_cpu
from .builder import WEIGHT_STORAGE, Op, lower
from .linear_epilogue import RopeAppend
from .matmul import project, projection
from .prefill_attention import n_lanes, prefill_attention
from .quantize import quantize, write_int8

_ATTENTION_LIMITS = (
    "batch 1, cache through graph inputs and outputs; no position_ids, attention_bias, quantised cache, "
    "q/k norm or output of scores"
)


@lower("GroupQueryAttention", domain="com.microsoft", limits=_ATTENTION_LIMITS)
@lower("QuantizedAttention", domain="webgpu_compile", limits="made by the compiler")
def group_query_attention(op: Op) -> list[Kernel]:
    """Rotate q and k, append k and v to the cache, attend. com.microsoft version 1."""
    for index, what in ((9, "position_ids"), (10, "attention_bias"), (12, "k_scale"), (14, "q_norm_weight")):
        if op.value(index) is not None:
            raise op.error(f"has {what} (input {index})", "export the model without it")
    packed = op.value(1) is None
    width = op.shape(0)[-1]
    kv_heads, heads = op.attr("kv_num_heads"), op.attr("num_heads")
    head_size = width // (heads + 2 * kv_heads) if packed else width // heads
    layer = Layer.of(op, past=3, cos=7, head_size=head_size, head_sink=11)
    qkv = op.read(0).name if packed else (op.read(0).name, op.read(1).name, op.read(2).name)
    return [*layer.append(op, qkv), *layer.attend(op)]


@lower("QkvAttention", domain="webgpu_compile", limits="made by the compiler")
def qkv_attention(op: Op) -> list[Kernel]:
    """GroupQueryAttention of one row of x · Wᵀ (+ bias): the product itself rotates and appends."""
    linear = projection(op)
    heads = op.attr("num_heads") + 2 * op.attr("kv_num_heads")
    layer = Layer.of(op, past=5, cos=9, head_size=linear.n // heads)
    if op.builder.target.cpu:
        qkv = op.scratch("qkv", DType.F32, (1, linear.n)).name
        return [*project(op, linear, qkv), *layer.append(op, qkv), *layer.attend(op)]
    return [*project(op, linear, layer.q, layer.rope_append()), *layer.attend(op)]


@dataclass(frozen=True, slots=True)
class RopeTable:
    """The weight tensor with cosines and sines, and the fields of `Attention` that describe it."""

    tensor: str | None = None
    rotary_dim: int = 0
    table_rows: int = 0
    table_dtype: DType = DType.F16
    interleaved: bool = False
    long_threshold: int = 0
    long_row: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """The tensors of one attention node."""

    attention: Attention
    rope: str | None
    k_cache: str
    v_cache: str
    q: str
    head_sink: str | None
    grid: str | None

    @classmethod
    def of(cls, op: Op, *, past: int, cos: int, head_size: int, head_sink: int | None = None) -> Layer:
        """Read a node with GroupQueryAttention's attributes; `past` and `cos` are input positions."""
        builder, decoder = op.builder, op.builder.decoder
        if decoder is None:
            raise op.error(
                "is in a model without a token sequence", "export with past and present key-values"
            )
        caches = []
        for index in (past, past + 1):
            value = op.value(index)
            if value is None:
                raise op.error("has no past key and value", "export with past_key_values")
            dtype = WEIGHT_STORAGE[np.dtype(value.dtype).name]
            shape = (1, op.attr("kv_num_heads"), decoder.capacity, head_size)
            caches.append(builder.tensor(value.name, dtype, shape, Role.STATE))
        rope = rope_table(op, cos) if op.attr("do_rotary", 0) else RopeTable()
        sink = op.read(head_sink) if head_sink is not None and op.value(head_sink) is not None else None
        names = {field.name for field in fields(RopeTable)} - {"tensor"}
        attention = Attention(
            heads=op.attr("num_heads"),
            kv_heads=op.attr("kv_num_heads"),
            head_size=head_size,
            tile=builder.target.shapes.tile,
            splits=builder.target.shapes.splits,
            capacity=decoder.capacity,
            cache_dtype=caches[0].dtype,
            scale=float(op.attr("scale", 0.0)),
            softcap=float(op.attr("softcap", 0.0)),
            window=op.attr("local_window_size", -1),
            smooth_softmax=bool(op.attr("smooth_softmax", 0) == 1),
            head_sink=sink.dtype if sink else None,
            **{name: getattr(rope, name) for name in names},
        )
        grid = None
        if decoder.indirect_attention and builder.rows == 1 and not builder.target.cpu:
            tensor = attention_grid(f"attention_grid/{attention.window}")
            grid = builder.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.role).name
        q_shape = (builder.rows, attention.heads * head_size)
        q = op.scratch("q", DType.F32, q_shape).name
        return cls(
            attention,
            rope.tensor,
            caches[0].name,
            caches[1].name,
            q,
            sink.name if sink else None,
            grid,
        )

    def append(self, op: Op, qkv: str | tuple[str, str, str]) -> tuple[Kernel, ...]:
        """Kernels that rotate q and append k and v, from a projection in memory."""
        lowered = rope_append(
            self.attention,
            op.builder.rows,
            qkv=qkv,
            q=self.q,
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            nodes=op.nodes,
            rope=self.rope,
            grid=self.grid,
        )
        return _declared(op, lowered)

    def rope_append(self) -> RopeAppend:
        """What a product does with one row of queries, keys and values."""
        names = {field.name for field in fields(RopeAppend)} - {"k_cache", "v_cache", "rope"}
        shared = {name: value for name, value in asdict(self.attention).items() if name in names}
        return RopeAppend(k_cache=self.k_cache, v_cache=self.v_cache, rope=self.rope, **shared)

    def attend(self, op: Op) -> list[Kernel]:
        """Kernels from the rotated q and the cache to the output."""
        block, rows = op.attr(INT8_BLOCK, 0), op.builder.rows
        out = write_int8(op) if block else op.write().name
        if not op.builder.target.cpu:
            if rows > 1:
                return [*_declared(op, self._prefill(op, out, out_int8=block > 0))]
            if not block or self.attention.n_splits > 1:
                return [*_declared(op, self._decode(op, out, out_int8=block > 0))]
        # Nothing is merged, and the kernels that attend without a merge know no int8.
        attend = self._attend_cpu if op.builder.target.cpu else self._decode
        if not block:
            return [*_declared(op, attend(op, out))]
        width = self.attention.heads * self.attention.head_size
        y = op.scratch("y", DType.F32, (rows, width)).name
        return [*_declared(op, attend(op, y)), quantize(y, out, rows, width, block, nodes=op.nodes)]

    def _decode(self, op: Op, out: str, *, out_int8: bool = False) -> Lowered:
        return decode_attention(
            self.attention,
            q=self.q,
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            out=out,
            out_int8=out_int8,
            name=op.name,
            nodes=op.nodes,
            head_sink=self.head_sink,
            grid=self.grid,
        )

    def _attend_cpu(self, op: Op, out: str) -> Lowered:
        return attention_cpu(
            self.attention,
            op.builder.rows,
            q=self.q,
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            out=out,
            nodes=op.nodes,
            head_sink=self.head_sink,
        )

    def _prefill(self, op: Op, out: str, *, out_int8: bool) -> Lowered:
        assert op.builder.decoder is not None
        return prefill_attention(
            self.attention,
            op.builder.rows,
            q=self.q,
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            out=out,
            out_int8=out_int8,
            name=op.name,
            nodes=op.nodes,
            lanes=n_lanes(self.attention, op.builder.decoder.most_rows),
            head_sink=self.head_sink,
        )


def rope_table(op: Op, cos: int) -> RopeTable:
    """Cosines and sines as one weight, cut to the cache capacity: inputs `cos` and `cos` + 1.

    LongRoPE's two tables become [short; long], unless the capacity is too small for the long one ever to
    be read.
    """
    assert op.builder.decoder is not None
    capacity = op.builder.decoder.capacity
    threshold = 0
    sections: list[tuple[gs.Constant, int]] = []
    for index in (cos, cos + 1):
        value = op.value(index)
        if isinstance(value, gs.Constant):
            sections.append((value, min(int(value.shape[0]), capacity)))
            continue
        chosen = constants_of_where(value.inputs[0]) if value is not None and value.inputs else None
        if chosen is None:
            raise op.error("has computed cosines or sines", "export with constant cos_cache and sin_cache")
        threshold, long, short = chosen
        sections.append((short, min(threshold, capacity)))
        if capacity > threshold:
            sections.append((long, min(int(long.shape[0]), capacity)))
    first = sections[0][0]
    dtype = WEIGHT_STORAGE[np.dtype(first.dtype).name]
    width = int(first.shape[1])
    table_rows = sum(rows for _, rows in sections) // 2
    tensor = _table_weight(op, sections, dtype, width)
    has_long = len(sections) == 4
    return RopeTable(
        tensor=tensor.name,
        rotary_dim=2 * width,
        table_rows=table_rows,
        table_dtype=dtype,
        interleaved=bool(op.attr("rotary_interleaved", 0)),
        long_threshold=threshold if has_long else 0,
        long_row=sections[0][1] if has_long else 0,
    )


def _table_weight(op: Op, sections: list[tuple[gs.Constant, int]], dtype: DType, width: int) -> Tensor:
    builder = op.builder
    keys = [storage_key(constant) for constant, _ in sections]
    name = "+".join(keys) + f":first_rows[{','.join(str(rows) for _, rows in sections)}]"
    tensor = builder.tensor(name, dtype, (sum(rows for _, rows in sections), width), Role.WEIGHT)
    fill = tuple(("rows", rows) for _, rows in sections)
    builder.weights[name] = Weight(tensor, "first_rows", tuple(map(Source, keys)), None, fill)
    return tensor


def _declared(op: Op, lowered: Lowered) -> tuple[Kernel, ...]:
    for tensor in lowered.tensors:
        op.builder.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.role)
    return lowered.kernels
