"""What makes a graph smaller without changing what it means; run to a fixed point."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs

from ..graph import (
    SMALL_ELEMENTS,
    detach,
    is_constant,
    is_graph_output,
    nodes,
    operand,
    producer,
    replace_reads,
    small_value,
)
from ..importer.external import alias
from .shapes import Types, infer_node, nbytes

NOT_FOLDED = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)
COPIED = ("MemcpyToHost", "MemcpyFromHost")


def constants_to_initializers(graph: gs.Graph) -> int:
    """Constant()  =>  an initializer of the same name"""
    moved = 0
    for node in nodes(graph, "Constant"):
        value = constant_node_value(node)
        if value is None or is_graph_output(graph, node.outputs[0]):
            continue
        old = node.outputs[0]
        new = gs.Constant(old.name, value)
        replace_reads(graph, old, new)
        detach(node)
        moved += 1
    return moved


def constant_node_value(node: gs.Node) -> object:
    """What a Constant node holds: lazy values or an array; None for text and sparse tensors."""
    attrs = node.attrs
    if "value" in attrs and isinstance(attrs["value"], gs.Constant):
        values = attrs["value"]._values
        if hasattr(values, "key"):
            values.key = node.outputs[0].name
        return values
    for name, dtype in (("float", np.float32), ("int", np.int64)):
        if f"value_{name}" in attrs:
            return np.array(attrs[f"value_{name}"], dtype)
        if f"value_{name}s" in attrs:
            return np.array(attrs[f"value_{name}s"], dtype)
    return None


def fold_constants(graph: gs.Graph) -> int:
    """op(small constants)  =>  a constant

    Weights are not touched: every operand and every result has at most `SMALL_ELEMENTS` elements, and
    the result's size is known from shape inference before anything is computed.
    """
    folded = 0
    for node in list(graph.nodes):
        if not _foldable(graph, node):
            continue
        if not all(is_constant(tensor) for tensor in node.inputs if tensor.name):
            continue
        values = [small_value(tensor) if tensor.name else None for tensor in node.inputs]
        if any(value is None and tensor.name for value, tensor in zip(values, node.inputs, strict=True)):
            continue
        outputs = [tensor for tensor in node.outputs if tensor.name]
        types: Types = {}
        infer_node(graph, node, types)
        sizes = [nbytes(types[tensor.name]) if tensor.name in types else None for tensor in outputs]
        if any(size is None or size > 8 * SMALL_ELEMENTS for size in sizes):
            continue
        for tensor, value in zip(outputs, _evaluate(graph, node, values), strict=True):
            replace_reads(graph, tensor, gs.Constant(tensor.name, np.asarray(value)))
        detach(node)
        folded += 1
    return folded


def _foldable(graph: gs.Graph, node: gs.Node) -> bool:
    if node.domain not in (None, "", "ai.onnx") or node.op in (*NOT_FOLDED, "Constant"):
        return False
    if any(is_graph_output(graph, tensor) for tensor in node.outputs) or any(True for _ in node.subgraphs()):
        return False
    if not any(tensor.name for tensor in node.outputs) or node.op in COPIED:
        return False
    return bool(onnx.defs.has(node.op))


def _evaluate(graph: gs.Graph, node: gs.Node, values: list[np.ndarray | None]) -> list[np.ndarray]:
    proto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node)
    named = {
        tensor.name: value for tensor, value in zip(node.inputs, values, strict=True) if value is not None
    }
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "fold",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None
                )
                for name, value in named.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(tensor.name) for tensor in node.outputs if tensor.name],
        ),
        opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
    )
    return list(onnx.reference.ReferenceEvaluator(model).run(None, named))


def drop_identities(graph: gs.Graph) -> int:
    """Identity(x)  =>  x"""
    dropped = 0
    for node in nodes(graph, "Identity"):
        source, target = node.inputs[0], node.outputs[0]
        if is_graph_output(graph, target) and not _may_take_name(graph, source):
            continue
        detach(node)
        replace_reads(graph, target, source)
        dropped += 1
    return dropped


def drop_casts(graph: gs.Graph) -> int:
    """Cast(x)  =>  x, where x has the type already"""
    dropped = 0
    for node in nodes(graph, "Cast"):
        source, target = node.inputs[0], node.outputs[0]
        wanted = onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"])
        if source.dtype is None or np.dtype(source.dtype) != wanted:
            continue
        if is_graph_output(graph, target) and not _may_take_name(graph, source):
            continue
        detach(node)
        replace_reads(graph, target, source)
        dropped += 1
    return dropped


def merge_casts(graph: gs.Graph) -> int:
    """Cast(Cast(x, a), b)  =>  Cast(x, b), where a can hold every value of x"""
    merged = 0
    for outer in nodes(graph, "Cast"):
        inner = producer(outer.inputs[0], "Cast")
        if inner is None or inner.inputs[0].dtype is None:
            continue
        source, middle = np.dtype(inner.inputs[0].dtype), np.dtype(inner.outputs[0].dtype)
        if source.kind in "fiub" and np.can_cast(source, middle, "safe"):
            outer.inputs[0] = inner.inputs[0]
            merged += 1
    return merged


def alias_reshaped_weights(graph: gs.Graph) -> int:
    """Reshape(weight, shape)  =>  the same bytes under another shape, no copy

    Tied embeddings: the exporter reads the LM head's quantised weight through a Reshape.
    """
    aliased = 0
    for node in nodes(graph, "Reshape"):
        weight, shape = operand(node, 0), small_value(operand(node, 1))
        if not is_constant(weight) or shape is None or is_graph_output(graph, node.outputs[0]):
            continue
        assert isinstance(weight, gs.Constant)
        target = _resolved(weight.shape, shape, bool(node.attrs.get("allowzero", 0)))
        old = node.outputs[0]
        replace_reads(graph, old, alias(weight, old.name, target))
        detach(node)
        aliased += 1
    return aliased


def _resolved(source: list[int], shape: np.ndarray, allow_zero: bool) -> tuple[int, ...]:
    dims = [int(source[i]) if d == 0 and not allow_zero else int(d) for i, d in enumerate(shape.tolist())]
    if -1 in dims:
        rest = int(np.prod([d for d in dims if d != -1], dtype=np.int64))
        dims[dims.index(-1)] = int(np.prod(source, dtype=np.int64)) // max(rest, 1)
    return tuple(dims)


def _may_take_name(graph: gs.Graph, source: gs.Tensor) -> bool:
    """Whether `source` may be written under a graph output's name instead of its own."""
    return bool(source.inputs) and not is_graph_output(graph, source)
