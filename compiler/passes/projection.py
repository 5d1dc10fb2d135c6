"""Products with constant weights: what fusions ask of MatMulNBits, MatMul and MatMulBias."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import is_constant, operand
from ..target import SPEC_LIMITS
from .function_bodies import NBITS_ATTRS

PROJECTIONS = ("MatMulNBits", "MatMul", "MatMulBias")
SCALES, ZERO_POINTS, GROUP_INDEX, BIAS = 2, 3, 4, 5  # inputs of MatMulNBits, com.microsoft version 1


def is_plain(node: gs.Node) -> bool:
    """Whether a call of ours can say what the product does: a constant matrix, no activation reordering."""
    weight = operand(node, 1)
    if node.op == "MatMulNBits":
        return is_constant(weight) and operand(node, GROUP_INDEX) is None
    return is_constant(weight) and bool(len(weight.shape) == 2)


def kind(node: gs.Node) -> str:
    """The overload of a call's body that means the product."""
    return {"MatMulNBits": "nbits", "MatMul": "dense", "MatMulBias": "dense_bias"}[node.op]


def weights(node: gs.Node) -> list[gs.Tensor | None]:
    """[weight, scales, zero points, bias], as far as the product has them."""
    if node.op == "MatMulNBits":
        return [operand(node, index) for index in (1, SCALES, ZERO_POINTS, BIAS)]
    return [node.inputs[1], None, None, operand(node, 2)]


def nbits_attrs(node: gs.Node) -> dict[str, int]:
    """MatMulNBits' attributes, with its defaults; zeros for a product that is none."""
    if node.op != "MatMulNBits":
        return dict.fromkeys(NBITS_ATTRS, 0)
    defaults = {"bits": 4, "accuracy_level": 0}
    return {name: int(node.attrs.get(name, defaults.get(name, 0))) for name in NBITS_ATTRS}


def fits_a_binding(*matrices: gs.Tensor | None) -> bool:
    """Whether matrices can be bound together: what is over the limit becomes several dispatches."""
    constants = [each for each in matrices if is_constant(each)]
    nbytes = (prod(each.shape) * np.dtype(each.dtype).itemsize for each in constants)
    return bool(sum(nbytes) <= SPEC_LIMITS["max-storage-buffer-binding-size"])
