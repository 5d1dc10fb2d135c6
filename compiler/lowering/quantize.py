"""Activations in int8, for linear layers with 4-bit weights that multiply in integers."""

from __future__ import annotations

from math import prod

from ..passes.function_bodies import INT8_BLOCK
from ..program import Access, Binding, Constant, DType, Kernel, Role, Tensor
from ..sequence import SEQUENCE
from .builder import Op, fold_grid, lower


@lower("QuantizeActivations", domain="webgpu_compile", limits="made by the compiler")
def quantize_activations(op: Op) -> list[Kernel]:
    """x as int8 with a scale per block of values, for 4-bit layers that multiply in integers."""
    *outer, k = op.shape(0)
    y, block = write_int8(op), op.attr(INT8_BLOCK)
    return [quantize(op.read(0).name, y, prod(outer), k, block, nodes=op.nodes, sequence=op.sequence)]


def write_int8(op: Op, block: int = 0, *, squares: bool = False) -> str:
    """Output 0 of an operator that is told to write int8: the name of its `quantized_tensor`.

    `block`: values per scale, unless as many as it is told.
    """
    *outer, k = op.out_shape(0)
    name = op.node.outputs[0].name
    tensor = quantized_tensor(name, prod(outer), k, block or op.attr(INT8_BLOCK), squares=squares)
    return op.builder.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.role).name


def quantized_tensor(name: str, rows: int, k: int, block: int, *, squares: bool = False) -> Tensor:
    """The tensor that holds `rows` rows of int8 activations: u32 [rows, stride].

    A row: its values in words of four, then one f32 scale per `block` values (bit patterns), then padding
    to 16 bytes. Of every eight values the even ones are one word and the odd ones the next, which is how
    4-bit weights come apart. Values from k on are 0. `block` is `Linear.chunk`. With `squares` a row ends
    with a sum of squares per block: the values lack the factor of an RMSNorm, which follows from those.
    """
    stride = quantized_squares(k, block)
    if squares:
        stride += stride - quantized_scales(k, block)
    return Tensor(name, DType.U32, (rows, stride), Role.ACTIVATION)


def quantized_scales(k: int, block: int) -> int:
    """Where in a row of a `quantized_tensor` the scales begin, in words."""
    return -(-k // block) * block // 4


def quantized_squares(k: int, block: int) -> int:
    """Where in a row of a `quantized_tensor` the sums of squares begin: behind the padded scales."""
    return quantized_scales(k, block) + (-(-k // block) + 3) // 4 * 4


def quantize(
    x: str,
    y: str,
    rows: int,
    k: int,
    block: int,
    *,
    nodes: tuple[str, ...],
    sequence: str | None = SEQUENCE,
    name: str = "quantize",
) -> Kernel:
    """x f32 [rows, k] => y, a `quantized_tensor`: symmetric, scale = max|x| / 127 per `block` values."""
    blocks = -(-k // block)
    grid = fold_grid(-(-rows * blocks // 64))
    constants: dict[str, Constant] = {
        "k": k,
        "block": block,
        "n_blocks": blocks,
        "stride": quantized_tensor("", 1, k, block).shape[1],
    }
    bindings = [Binding("x", x), Binding("y", y, Access.READ_WRITE)]
    if sequence:
        bindings.insert(0, Binding("sequence", sequence))
    return Kernel(
        name=name,
        template="quantize.wgsl.j2",
        workgroup=(64, 1, 1),
        grid=grid,
        bindings=tuple(bindings),
        constants=tuple(sorted(constants.items())),
        nodes=nodes,
    )
