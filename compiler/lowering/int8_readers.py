"""Who reads a value as int8: its producer then writes int8 itself, and that costs no dispatch."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from ..program import Tensor
from .builder import Builder, Op
from .linear_format import int8_chunk
from .quantize import quantized_tensor


@dataclass(frozen=True, slots=True)
class Readers:
    """How the nodes after a value read it: as int8 in blocks of `block` (0: none does), others as f32."""

    block: int
    others: bool


def readers(builder: Builder, value: gs.Tensor) -> Readers:
    """Int8 readers have 4-bit weights and accuracy level 4; those of several block sizes count as f32."""
    blocks = {_block(builder, node, value) for node in value.outputs}
    others = value.name in builder.outputs or 0 in blocks
    blocks.discard(0)
    if len(blocks) != 1:
        return Readers(0, True)
    return Readers(blocks.pop(), others)


def write_int8(op: Op, index: int, rows: int, block: int, *, squares: bool = False) -> Tensor:
    """Output `index` as a `quantized_tensor`, under the name by which `activations` finds it."""
    name = int8_name(op.node.outputs[index].name, block)
    tensor = quantized_tensor(name, rows, op.out_shape(index)[-1], block, squares=squares)
    return op.builder.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.role)


def int8_name(value: str, block: int) -> str:
    """The name of the int8 form of a value."""
    return f"{value}/int8x{block}"


def _block(builder: Builder, node: gs.Node, value: gs.Tensor) -> int:
    four_bit = node.op in ("MatMulNBits", "GatedMatMulNBits") or (
        node.op == "QkvAttention" and node.attrs.get("projection") == "nbits"
    )
    if not four_bit or [v.name for v in node.inputs].count(value.name) != 1 or node.inputs[0] is not value:
        return 0
    if not builder.int8_activations(node.attrs.get("accuracy_level", 0)):
        return 0
    return int8_chunk(node.attrs.get("block_size", 0))
