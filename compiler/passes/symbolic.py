"""Integers that depend on the sequence length only, computed symbolically.

Exporters spell the same two numbers in many ways (a mask's width, its sum, its maximum, through casts,
gathers and copies). Instead of a pattern per spelling, the small integer subgraph is evaluated with
symbols: every value becomes a tensor of affine expressions such as `total_sequence_length - 1`, or of one
comparison. For batch 1 without padding, the attention mask is all ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import (
    detach,
    is_constant,
    is_graph_input,
    is_graph_output,
    n_elements,
    nodes,
    operand,
    replace_reads,
    small_value,
)
from ..importer.config import ModelConfig
from ..importer.dims import TOTAL
from .affine import SEQLENS, TOTAL_LENGTH, Affine, Greater, Known, Ones, Symbolic, Value, dimension

MAX_ELEMENTS = 64


def evaluate(graph: gs.Graph, config: ModelConfig) -> Known:
    """The symbolic values of a graph in topological order, by tensor id."""
    known: Known = {}
    for port in graph.inputs:
        if port.name == config.mask_input and port.shape is not None and len(port.shape) == 2:
            known[id(port)] = Ones(tuple(map(dimension, port.shape)))
        if port.name == TOTAL and port.shape in ([], [1]):  # a device graph, dumped and compiled again
            known[id(port)] = Symbolic(tuple(port.shape), (TOTAL_LENGTH,))
    for node in nodes(graph, "GroupQueryAttention"):
        for index, expression in ((5, SEQLENS), (6, TOTAL_LENGTH)):
            port = operand(node, index)
            if port is not None and is_graph_input(graph, port) and id(port) not in known:
                shape = (1,) if index == 5 or port.shape else ()
                known[id(port)] = Symbolic(shape, (expression,))
    for node in graph.nodes:
        rule = _RULES.get(node.op)
        value = rule(node, known) if rule and node.domain in (None, "", "ai.onnx") else None
        if value is not None and node.outputs and _size(value) <= MAX_ELEMENTS:
            known[id(node.outputs[0])] = value
    return known


def fold_shapes(graph: gs.Graph, config: ModelConfig) -> int:
    """Shape(x), and integers computed from it  =>  a constant, where the dimensions in question are known"""
    known = evaluate(graph, config)
    folded = 0
    for node in list(graph.nodes):
        if not node.outputs:
            continue
        tensor = node.outputs[0]
        value = known.get(id(tensor))
        if not isinstance(value, Symbolic) or tensor.dtype is None or is_graph_output(graph, tensor):
            continue
        numbers = [e.constant for e in value.elements if isinstance(e, Affine) and not e.terms]
        if len(numbers) != len(value.elements) or np.dtype(tensor.dtype).kind not in "iu":
            continue
        array = np.array(numbers, np.dtype(tensor.dtype)).reshape(value.shape)
        detach(node)
        replace_reads(graph, tensor, gs.Constant(tensor.name, array))
        folded += 1
    return folded


def _size(value: Value) -> int:
    return len(value.elements) if isinstance(value, Symbolic) else 0


def _read(node: gs.Node, index: int, known: Known) -> Value | None:
    tensor = operand(node, index)
    if tensor is None:
        return None
    if id(tensor) in known:
        return known[id(tensor)]
    if (
        not is_constant(tensor)
        or np.dtype(tensor.dtype).kind not in "iu"
        or n_elements(tensor) > MAX_ELEMENTS
    ):
        return None
    value = small_value(tensor)
    if value is None:
        return None
    return Symbolic(value.shape, tuple(Affine(int(v)) for v in value.reshape(-1).tolist()))


def _numbers(node: gs.Node, index: int, attribute: str, known: Known) -> list[int] | None:
    """An operand of plain numbers, an attribute in older opsets; None where neither is there."""
    if attribute in node.attrs:
        value = node.attrs[attribute]
        return [int(v) for v in value] if isinstance(value, list) else [int(value)]
    read = _read(node, index, known)
    if not isinstance(read, Symbolic):
        return None
    if any(not isinstance(e, Affine) or e.terms for e in read.elements):
        return None
    return [e.constant for e in read.elements if isinstance(e, Affine)]


def _pass(node: gs.Node, known: Known) -> Value | None:
    return _read(node, 0, known)


def _shape(node: gs.Node, known: Known) -> Value | None:
    shape = node.inputs[0].shape
    if shape is None or any(dim in (None, "") for dim in shape):
        return None
    start, end = node.attrs.get("start", 0), node.attrs.get("end", len(shape))
    picked = list(shape)[slice(start, end)]
    return Symbolic((len(picked),), tuple(map(dimension, picked)))


def _reduce_sum(node: gs.Node, known: Known) -> Value | None:
    value, axes = _read(node, 0, known), _numbers(node, 1, "axes", known)
    keep = node.attrs.get("keepdims", 1)
    if isinstance(value, Symbolic):
        whole = axes is None or len(axes) == len(value.shape)
        if len(value.elements) != 1 or not whole:
            return None
        return Symbolic((1,) * len(value.shape) if keep else (), value.elements)
    if not isinstance(value, Ones):
        return None
    rank = len(value.shape)
    reduced = {axis % rank for axis in axes} if axes is not None else set(range(rank))
    kept = [dim for axis, dim in enumerate(value.shape) if axis not in reduced]
    if any(dim != Affine(1) for dim in kept):
        return None  # batch 1 only
    total = Affine(1)
    for axis in sorted(reduced):
        dim = value.shape[axis]
        if total.terms and dim.terms:
            return None
        total = dim.times(total.constant) if not total.terms else total.times(dim.constant)
    return Symbolic((1,) * (rank if keep else len(kept)), (total,))


def _reduce_extreme(node: gs.Node, known: Known) -> Value | None:
    """The maximum (or minimum) of one element is that element."""
    value, axes = _read(node, 0, known), _numbers(node, 1, "axes", known)
    if not isinstance(value, Symbolic) or len(value.elements) != 1:
        return None
    rank = len(value.shape)
    n_reduced = rank if axes is None else len(axes)
    return Symbolic((1,) * (rank if node.attrs.get("keepdims", 1) else rank - n_reduced), value.elements)


def _arithmetic(node: gs.Node, known: Known) -> Value | None:
    a, b = _read(node, 0, known), _read(node, 1, known)
    if not isinstance(a, Symbolic) or not isinstance(b, Symbolic):
        return None
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        return None
    pairs = zip(_spread(a, shape), _spread(b, shape), strict=True)
    elements = [_combine(node.op, x, y) for x, y in pairs]
    if any(element is None for element in elements):
        return None
    return Symbolic(shape, tuple(element for element in elements if element is not None))


def _spread(value: Symbolic, shape: tuple[int, ...]) -> list[Affine | Greater]:
    indices = np.arange(prod(value.shape)).reshape(value.shape)
    return [value.elements[i] for i in np.broadcast_to(indices, shape).reshape(-1)]


def _combine(op: str, x: Affine | Greater, y: Affine | Greater) -> Affine | Greater | None:
    if isinstance(x, Greater) or isinstance(y, Greater):
        return None
    if op == "Add":
        return x + y
    if op == "Sub":
        return x + y.times(-1)
    if op == "Mul":
        return x.times(y.constant) if not y.terms else y.times(x.constant) if not x.terms else None
    if op in ("Less", "LessOrEqual"):
        x, y, op = y, x, {"Less": "Greater", "LessOrEqual": "GreaterOrEqual"}[op]
    difference = x + y.times(-1)
    if difference.terms != TOTAL_LENGTH.terms:
        return None
    return Greater(-difference.constant - (op == "GreaterOrEqual"))


def _gather(node: gs.Node, known: Known) -> Value | None:
    value, index = _read(node, 0, known), operand(node, 1)
    picked = small_value(index)
    if not isinstance(value, Symbolic) or len(value.shape) != 1 or picked is None:
        return None
    size = value.shape[0]
    if any(not -size <= i < size for i in picked.reshape(-1).tolist()):
        return None
    return Symbolic(picked.shape, tuple(value.elements[i] for i in picked.reshape(-1).tolist()))


def _squeeze(node: gs.Node, known: Known) -> Value | None:
    value, axes = _read(node, 0, known), _numbers(node, 1, "axes", known)
    if not isinstance(value, Symbolic):
        return None
    rank = len(value.shape)
    dropped = (
        {axis % rank for axis in axes}
        if axes is not None
        else {i for i, d in enumerate(value.shape) if d == 1}
    )
    return Symbolic(tuple(d for i, d in enumerate(value.shape) if i not in dropped), value.elements)


def _unsqueeze(node: gs.Node, known: Known) -> Value | None:
    value, axes = _read(node, 0, known), _numbers(node, 1, "axes", known)
    if not isinstance(value, Symbolic) or axes is None:
        return None
    rank = len(value.shape) + len(axes)
    added = {axis % rank for axis in axes}
    rest = iter(value.shape)
    return Symbolic(tuple(1 if i in added else next(rest) for i in range(rank)), value.elements)


def _reshape(node: gs.Node, known: Known) -> Value | None:
    value, shape = _read(node, 0, known), _numbers(node, 1, "shape", known)
    if not isinstance(value, Symbolic) or shape is None or 0 in shape:
        return None
    try:
        target = np.empty(value.shape).reshape(shape).shape
    except ValueError:
        return None
    return Symbolic(target, value.elements)


def _slice(node: gs.Node, known: Known) -> Value | None:
    value = _read(node, 0, known)
    names = ("starts", "ends", "axes", "steps")
    bounds = [_numbers(node, i + 1, name, known) for i, name in enumerate(names)]
    if not isinstance(value, Symbolic) or len(value.shape) != 1 or bounds[0] is None or bounds[1] is None:
        return None
    if len(bounds[0]) != 1 or (operand(node, 4) is not None and bounds[3] is None):
        return None
    picked = value.elements[slice(bounds[0][0], bounds[1][0], (bounds[3] or [1])[0])]
    return Symbolic((len(picked),), picked)


def _concat(node: gs.Node, known: Known) -> Value | None:
    values = [_read(node, index, known) for index in range(len(node.inputs))]
    parts = [value for value in values if isinstance(value, Symbolic) and len(value.shape) == 1]
    if len(parts) != len(values):
        return None
    elements = tuple(element for part in parts for element in part.elements)
    return Symbolic((len(elements),), elements)


def _cast(node: gs.Node, known: Known) -> Value | None:
    value = _pass(node, known)
    dtype = node.outputs[0].dtype
    integral = dtype is not None and np.dtype(dtype).kind in "iu"
    return value if integral and np.dtype(dtype).itemsize >= 4 else None


_ARITHMETIC = ("Add", "Sub", "Mul", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_RULES: dict[str, Callable[[gs.Node, Known], Value | None]] = {
    **dict.fromkeys(("Identity", "MemcpyToHost", "MemcpyFromHost"), _pass),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), _reduce_extreme),
    "Cast": _cast,
    "Shape": _shape,
    "ReduceSum": _reduce_sum,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Concat": _concat,
}
