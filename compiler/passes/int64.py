"""64-bit integers become 32-bit ones, with a proof that nothing is lost.

WebGPU has no 64-bit integers. A graph input is checked by the runtime (tokens must be in the vocabulary),
constants are checked here, and arithmetic by intervals: every value that the int64 computation can take
must fit into int32.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import is_constant, label
from ..importer.config import ModelConfig
from ..importer.external import read
from .placement import COPIES, HOST_OPERANDS

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
Interval = tuple[int, int]
MOVES = (
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
    "Identity",
    "Slice",
    "Expand",
    "Concat",
    "Tile",
    *COPIES,
)
READS_INDICES = ("Gather", "GatherBlockQuantized")
COMPARES = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Where")


def narrow_int64(graph: gs.Graph, config: ModelConfig) -> int:
    """int64 value  =>  int32 value, where its interval fits

    Constants that are parameters of an operator (the shape of a Reshape) stay int64, as the operator's
    definition wants; they never reach the GPU.

    Raises:
        CompileError: naming the node whose result might not fit, or that has no 32-bit form.
    """
    narrowed = 0
    intervals: dict[int, Interval] = {}
    for port in graph.inputs:
        if _wide(port):
            limit = config.vocab_size if port.name == config.token_input else None
            intervals[id(port)] = (0, limit - 1) if limit else (INT32_MIN, INT32_MAX)
            port.dtype = np.dtype(np.int32)
            narrowed += 1
    for node in graph.nodes:
        narrowed += _narrow_node(node, intervals)
    return narrowed


def _narrow_node(node: gs.Node, intervals: dict[int, Interval]) -> int:
    outputs = [tensor for tensor in node.outputs if tensor.name and _wide(tensor)]
    entries = [
        (index, tensor)
        for index, tensor in enumerate(node.inputs)
        if tensor.name
        and not (index in HOST_OPERANDS.get(node.op, ()) and is_constant(tensor))
        and (id(tensor) in intervals or _wide(tensor))
    ]
    if not outputs and not entries:
        return 0
    if node.op == "Cast":
        return _narrow_cast(node, intervals, bool(outputs))
    if node.op in READS_INDICES and not outputs:
        return 0
    if node.op not in (*MOVES, *ARITHMETIC, *COMPARES, "Gather"):
        raise CompileError(
            label(node),
            "it computes on 64-bit integers, which WebGPU has not, and has no 32-bit form here",
            "export the model with 32-bit integers there",
        )
    found = [
        _interval(tensor, intervals) for index, tensor in entries if not (node.op == "Where" and index == 0)
    ]
    for index, tensor in entries:
        if is_constant(tensor):
            node.inputs[index] = _narrow_constant(node, tensor)
    if node.op in READS_INDICES:
        found = found[:1]
    return _settle(node, outputs, _result(node.op, found), intervals)


def _settle(
    node: gs.Node, outputs: list[gs.Tensor], interval: Interval, intervals: dict[int, Interval]
) -> int:
    if outputs and not (interval[0] >= INT32_MIN and interval[1] <= INT32_MAX):
        raise CompileError(
            label(node),
            f"its 64-bit result can be anything from {interval[0]} to {interval[1]}, more than 32 bits hold",
            "export the model with 32-bit integers there, or give vocab_size in genai_config.json",
        )
    for tensor in outputs:
        tensor.dtype = np.dtype(np.int32)
        intervals[id(tensor)] = interval
    return len(outputs)


def _narrow_cast(node: gs.Node, intervals: dict[int, Interval], to_wide: bool) -> int:
    """Cast(x, int64) => Cast(x, int32); Cast from a narrowed value stays as it is."""
    if not to_wide:
        return 0
    source, target = node.inputs[0], node.outputs[0]
    kind = "?" if source.dtype is None else np.dtype(source.dtype).kind
    interval = intervals.get(id(source), (0, 1) if kind == "b" else (INT32_MIN, INT32_MAX))
    if kind == "f":
        raise CompileError(
            label(node),
            "it turns floats into 64-bit integers, whose range is not known",
            "cast to int32 instead",
        )
    node.attrs["to"] = int(onnx.TensorProto.INT32)
    return _settle(node, [target], interval, intervals)


def _interval(tensor: gs.Tensor, intervals: dict[int, Interval]) -> Interval:
    if isinstance(tensor, gs.Constant):
        values = read(tensor)
        return (int(values.min()), int(values.max())) if values.size else (0, 0)
    return intervals.get(id(tensor), (INT32_MIN, INT32_MAX))


def _result(op: str, found: list[Interval]) -> Interval:
    low, high = found[0] if found else (INT32_MIN, INT32_MAX)
    if op in ("Add", "Sub", "Mul") and len(found) == 2:
        other = found[1]
        if op == "Add":
            return low + other[0], high + other[1]
        if op == "Sub":
            return low - other[1], high - other[0]
        corners = [a * b for a in (low, high) for b in other]
        return min(corners), max(corners)
    if op == "Div":
        # Truncated: no quotient is larger than its dividend, whatever the divisor.
        most = max(abs(low), abs(high))
        return -most, most
    if op == "Neg":
        return -high, -low
    if op == "Abs":
        return 0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))
    if op in ("Min", "Max"):
        pick = min if op == "Min" else max
        return pick(a for a, _ in found), pick(b for _, b in found)
    return min(a for a, _ in found or [(low, high)]), max(b for _, b in found or [(low, high)])


def _narrow_constant(node: gs.Node, tensor: gs.Constant) -> gs.Constant:
    values = read(tensor)
    if values.size and (values.min() < INT32_MIN or values.max() > INT32_MAX):
        raise CompileError(
            label(node),
            f"its constant {tensor.name} holds {values.max()}, which 32 bits cannot",
            "export the model with smaller constants",
        )
    return gs.Constant(f"{tensor.name}/i32", values.astype(np.int32))


def _wide(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype) == np.int64
