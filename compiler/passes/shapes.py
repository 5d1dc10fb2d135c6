"""Shapes and element types of every value, without running anything.

onnx.shape_inference does not know com.microsoft or the operators that exporters put into the default
domain; the table below does. For every other operator of the standard the onnx package is asked node by
node. A dimension is an int, or a str naming a symbol; an unknown one gets a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import captured, label, operand, small_value
from ..importer.dims import PAST, TOTAL
from ..importer.external import NBITS, tensor_nbytes
from .functions import function_body, is_call

Dim = int | str
Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """Element type and shape of a value; `shape` is None where not even the rank is known."""

    dtype: np.dtype
    shape: Shape | None


Types = dict[str, Type]


class UnknownShapeError(Exception):
    """An operand's shape is not known, so nothing follows for the results."""


Rule = Callable[[gs.Node, list[Type | None]], list[Type | None]]


def infer_shapes(graph: gs.Graph) -> None:
    """Set shape and dtype of every variable of the graph.

    Raises:
        CompileError: naming the node whose shapes do not fit together.
    """
    types = infer(graph, {})
    for node in graph.nodes:
        for tensor in node.outputs:
            known = types.get(tensor.name)
            if known is not None and isinstance(tensor, gs.Variable):
                tensor.dtype = known.dtype
                tensor.shape = None if known.shape is None else list(known.shape)


def concrete_shapes(graph: gs.Graph, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every value, once `dims` (such as {"sequence_length": 1}) are bound.

    KV caches, whose length lives in `past_sequence_length` and `total_sequence_length`, are left out
    unless those are bound too: on the GPU they have a capacity instead.

    Raises:
        CompileError: a dimension stays unbound.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, known in infer(graph, dims).items():
        shape = tuple(dims.get(dim, dim) if isinstance(dim, str) else dim for dim in known.shape or ())
        symbols = [dim for dim in shape if isinstance(dim, str)]
        if known.shape is None:
            raise CompileError(
                f"value {name}", "its rank is not known", "export the model with static shapes"
            )
        if not symbols:
            shapes[name] = tuple(int(dim) for dim in shape)
        elif not {PAST, TOTAL} & set(symbols):
            raise CompileError(
                f"value {name}", f"its dimension {symbols[0]} is unbound", f"use --dim {symbols[0]}=SIZE"
            )
    return shapes


def infer(graph: gs.Graph, dims: Mapping[str, int]) -> Types:
    """Types of graph inputs, constants and node outputs, by name, with `dims` bound in the inputs."""
    types: Types = {}
    for port in graph.inputs:
        shape = None if port.shape is None else tuple(dims.get(dim, dim) for dim in port.shape)
        types[port.name] = Type(np.dtype(port.dtype), shape)
    for node in graph.nodes:
        infer_node(graph, node, types)
    return types


def infer_node(graph: gs.Graph, node: gs.Node, types: Types) -> None:
    """Add the types of a node's outputs to `types`."""
    if is_call(node) and node.op != "MemcpyToHost":
        for inner in function_body(graph, node):
            infer_node(graph, inner, types)
        return
    entries = [_type(tensor, types) if tensor.name else None for tensor in node.inputs]
    try:
        found = RULES[node.op](node, entries) if node.op in RULES else _standard(graph, node, entries)
    except UnknownShapeError:
        found = [_declared(tensor) for tensor in node.outputs]
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CompileError(
            label(node), f"its inputs do not fit together ({error})", "check the model"
        ) from error
    for index, (tensor, known) in enumerate(zip(node.outputs, found, strict=False)):
        if not tensor.name or known is None:
            continue
        if known.shape is not None:
            named = tuple(
                f"{tensor.name}_dim{i}" if d in ("", None) else d for i, d in enumerate(known.shape)
            )
            known = Type(known.dtype, named)
            sizes = tuple(d for d in named if isinstance(d, int))
            code = onnx.helper.np_dtype_to_tensor_dtype(known.dtype)
            tensor_nbytes(f"output {index} of {label(node)}", code, sizes)
        types[tensor.name] = known


def _type(tensor: gs.Tensor, types: Types) -> Type | None:
    if isinstance(tensor, gs.Constant):
        return Type(np.dtype(tensor.dtype), tuple(int(dim) for dim in tensor.shape))
    return types.get(tensor.name)


def _shape(entry: Type | None) -> Shape:
    if entry is None or entry.shape is None:
        raise UnknownShapeError
    return entry.shape


def _dtype(entry: Type | None) -> np.dtype:
    if entry is None:
        raise UnknownShapeError
    return entry.dtype


def broadcast(*shapes: Shape) -> Shape:
    """NumPy broadcasting over ints and symbols. Of two different symbols the first is kept: the model
    would not run if they differed."""
    rank = max(len(shape) for shape in shapes)
    out: list[Dim] = []
    for axis in range(rank):
        dims = [shape[axis - rank + len(shape)] for shape in shapes if axis >= rank - len(shape)]
        sizes = {dim for dim in dims if isinstance(dim, int) and dim != 1}
        if len(sizes) > 1:
            raise ValueError(f"sizes {sorted(sizes)} do not broadcast")
        symbols = [dim for dim in dims if isinstance(dim, str)]
        out.append(sizes.pop() if sizes else symbols[0] if symbols else 1)
    return tuple(out)


def _same(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [entries[0]]


def _elementwise(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [Type(_dtype(entries[0]), broadcast(*(_shape(entry) for entry in entries)))]


def _compare(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [Type(np.dtype(bool), broadcast(_shape(entries[0]), _shape(entries[1])))]


def _where(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [Type(_dtype(entries[1]), broadcast(*(_shape(entry) for entry in entries)))]


def _cast(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [Type(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]), _shape(entries[0]))]


def _matmul(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    a, b = _shape(entries[0]), _shape(entries[1])
    if isinstance(a[-1], int) and isinstance(b[-2], int) and a[-1] != b[-2]:
        raise ValueError(f"{a[-1]} columns meet {b[-2]} rows")
    return [
        Type(
            _dtype(entries[0]),
            (*broadcast(a[:-2] or (1,), b[:-2] or (1,)), a[-2], b[-1])[-max(len(a), len(b)) :],
        )
    ]


def _matmul_nbits(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    a = _shape(entries[0])
    if isinstance(a[-1], int) and a[-1] != node.attrs["K"]:
        raise ValueError(f"the input has {a[-1]} columns, K is {node.attrs['K']}")
    return [Type(_dtype(entries[0]), (*a[:-1], node.attrs["N"]))]


def _gather_block_quantized(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    data, axis = _shape(entries[0]), node.attrs.get("gather_axis", 0)
    quantize_axis = node.attrs.get("quantize_axis", 1) % len(data)
    shape = list(data)
    if _dtype(entries[0]) == np.uint8:  # several values per byte, along the quantised axis
        shape[quantize_axis] = int(data[quantize_axis]) * 8 // node.attrs.get("bits", 4)
    return [Type(_dtype(entries[2]), (*shape[:axis], *_shape(entries[1]), *shape[axis + 1 :]))]


def _layer_norm(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [entries[0], None]


def _skip_layer_norm(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    return [entries[0], None, None, entries[0]]


def _group_query_attention(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    """com.microsoft 1: output [b, s, heads·size], present [b, kv_heads, total, size]."""
    batch, sequence, width = _shape(entries[0])
    heads, kv_heads = node.attrs["num_heads"], node.attrs["kv_num_heads"]
    packed = operand(node, 1) is None
    n_parts = heads + 2 * kv_heads if packed else heads
    if not isinstance(width, int) or width % n_parts:
        raise ValueError(f"{width} columns are not {n_parts} heads")
    size = width // n_parts
    dtype = _dtype(entries[3]) if len(entries) > 3 and entries[3] is not None else _dtype(entries[0])
    present = Type(dtype, (batch, kv_heads, TOTAL, size))
    return [Type(_dtype(entries[0]), (batch, sequence, heads * size)), present, present]


def _if(node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    """The type of an If whose branches are constants; rows that differ become an unknown dimension."""
    branches = [node.attrs[name].outputs for name in ("then_branch", "else_branch")]
    found: list[Type | None] = []
    for then, other in zip(*branches, strict=True):
        sides = [_branch_type(tensor) for tensor in (then, other)]
        if sides[0] is None or sides[1] is None or len(_shape(sides[0])) != len(_shape(sides[1])):
            found.append(None)
            continue
        pairs = zip(_shape(sides[0]), _shape(sides[1]), strict=True)
        found.append(Type(sides[0].dtype, tuple(a if a == b else "" for a, b in pairs)))
    return found


def _branch_type(tensor: gs.Tensor) -> Type | None:
    if tensor.inputs and tensor.inputs[0].op == "Constant":
        tensor = tensor.inputs[0].attrs.get("value", tensor)
    if tensor.shape is None or tensor.dtype is None:
        return None
    return Type(np.dtype(tensor.dtype), tuple(tensor.shape))


_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")
_UNARY = (
    "Identity",
    "Neg",
    "Abs",
    "Sigmoid",
    "Tanh",
    "Gelu",
    "FastGelu",
    "Relu",
    "Sqrt",
    "Exp",
    "Log",
    "QuickGelu",
    "Softmax",
)
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys((*_UNARY, *_COPIES), _same),
    **dict.fromkeys(("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"), _compare),
    "Where": _where,
    "Cast": _cast,
    "MatMul": _matmul,
    "MatMulNBits": _matmul_nbits,
    "GatherBlockQuantized": _gather_block_quantized,
    "SimplifiedLayerNormalization": _layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "GroupQueryAttention": _group_query_attention,
    "If": _if,
}


def _standard(graph: gs.Graph, node: gs.Node, entries: list[Type | None]) -> list[Type | None]:
    """Ask the onnx package; an operator that it does not know keeps the types that the file declares."""
    declared = [_declared(tensor) for tensor in node.outputs]
    if node.domain not in (None, "", "ai.onnx") or any(True for _ in captured(node)):
        return declared
    try:
        schema = onnx.defs.get_schema(node.op, graph.opset, "")
    except onnx.defs.SchemaError:
        return declared
    proto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node)
    inputs: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor, entry in zip(node.inputs, entries, strict=True):
        if entry is None:
            continue
        code = onnx.helper.np_dtype_to_tensor_dtype(entry.dtype)
        inputs[tensor.name] = onnx.helper.make_tensor_type_proto(code, entry.shape)
        value = small_value(tensor)
        if value is not None:
            data[tensor.name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name)
    opsets = [onnx.helper.make_opsetid("", graph.opset)]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, proto, inputs, data, opset_imports=opsets)
    except Exception as error:  # InferenceError and friends, all of which mean the same
        raise ValueError(str(error).strip().splitlines()[-1][:200]) from error
    return [
        _from_proto(found[tensor.name]) if tensor.name in found else known
        for tensor, known in zip(node.outputs, declared, strict=True)
    ]


def _declared(tensor: gs.Tensor) -> Type | None:
    if tensor.dtype is None:
        return None
    return Type(np.dtype(tensor.dtype), None if tensor.shape is None else tuple(tensor.shape))


def _from_proto(proto: Any) -> Type | None:
    kind = proto.tensor_type
    if not kind.elem_type:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if not kind.HasField("shape"):
        return Type(dtype, None)
    dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim)
    return Type(dtype, tuple(dims))


def nbytes(known: Type) -> int | None:
    """Bytes of a value, None while a dimension is a symbol."""
    if known.shape is None or any(isinstance(dim, str) for dim in known.shape):
        return None
    bits = NBITS[onnx.helper.np_dtype_to_tensor_dtype(known.dtype)]
    return (prod(int(dim) for dim in known.shape) * bits + 7) // 8
