"""Asking and changing a gs.Graph: the vocabulary that the importer and the passes are written in.

A gs.Graph is mutable and its tensors compare equal by name, so identity questions go through the helpers
here. Weights are never read: constants of the model stay `LazyValues` (see `importer/external.py`), and
`small_value` is the one way from a constant to its numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import prod
from typing import Any, TypeGuard

import numpy as np
import onnx_graphsurgeon as gs

from .errors import printable

SMALL_ELEMENTS = 4096  # what a pass may read: parameters, scalars, axes; never a weight


def nodes(graph: gs.Graph, *ops: str) -> list[gs.Node]:
    """The nodes with one of these operator names, in graph order; a snapshot, safe to change under."""
    return [node for node in graph.nodes if node.op in ops]


def producer(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The node that writes a tensor, if its operator is one of `ops` (any, if none are given)."""
    if not tensor.inputs:
        return None
    node = tensor.inputs[0]
    return node if not ops or node.op in ops else None


def operand(node: gs.Node, index: int) -> gs.Tensor | None:
    """Input `index` of a node, or None where an optional input is left out."""
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    return node.inputs[index]


def result(node: gs.Node, index: int) -> gs.Tensor | None:
    """Output `index` of a node, or None where an optional output is left out."""
    if index >= len(node.outputs) or not node.outputs[index].name:
        return None
    return node.outputs[index]


def readers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read a tensor, each once, in the order in which they were attached."""
    seen: dict[int, gs.Node] = {id(node): node for node in tensor.outputs}
    return list(seen.values())


def is_graph_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def is_graph_input(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is entry for entry in graph.inputs)


def sole_reader(graph: gs.Graph, tensor: gs.Tensor) -> Any:
    """The only node that reads a tensor; None if there are more, or if the caller reads it too."""
    found = readers(tensor)
    if len(found) != 1 or is_graph_output(graph, tensor):
        return None
    return found[0]


def is_read(graph: gs.Graph, tensor: gs.Tensor | None) -> bool:
    """Whether a node or the caller reads a tensor."""
    return tensor is not None and (bool(tensor.outputs) or is_graph_output(graph, tensor))


def n_rows(tensor: gs.Tensor) -> int | None:
    """Rows of a value whose last axis is a row's; None while a dimension is a symbol."""
    outer = None if tensor.shape is None else tensor.shape[:-1]
    if outer is None or any(not isinstance(dim, int) for dim in outer):
        return None
    return int(prod(outer))


def is_constant(tensor: gs.Tensor | None) -> TypeGuard[Any]:
    return isinstance(tensor, gs.Constant)


def n_elements(constant: gs.Constant) -> int:
    return prod(constant.shape)


def small_value(tensor: gs.Tensor | None) -> np.ndarray | None:
    """The numbers of a constant with at most `SMALL_ELEMENTS` elements; None for anything else.

    A constant whose data file is missing (`--check`) has no numbers either.
    """
    if not isinstance(tensor, gs.Constant) or n_elements(tensor) > SMALL_ELEMENTS:
        return None
    values = tensor._values
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values.load())
    except FileNotFoundError:
        return None


def replace_reads(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old` read `new`; a graph output keeps its name."""
    for node in readers(old):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
    if not is_graph_output(graph, old):
        return
    writer = producer(new)
    if writer is not None and not is_graph_output(graph, new):
        # The caller knows the output by its name, so the tensor with the name moves to the new writer.
        index = next(i for i, tensor in enumerate(writer.outputs) if tensor is new)
        old.inputs.clear()
        writer.outputs[index] = old
        old.dtype, old.shape = new.dtype, new.shape
        for node in readers(new):
            for position, tensor in enumerate(node.inputs):
                if tensor is new:
                    node.inputs[position] = old
    else:
        old.inputs.clear()
        graph.nodes.append(gs.Node("Identity", f"{old.name}/Identity", inputs=[new], outputs=[old]))


def detach(node: gs.Node) -> None:
    """Cut a node off its tensors; `tidy` then drops it."""
    node.inputs.clear()
    node.outputs.clear()


def tensor_names(graph: gs.Graph) -> set[str]:
    names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        names.update(tensor.name for tensor in (*node.inputs, *node.outputs))
    return names


def fresh_name(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or `wanted_2`, …: a tensor name that the graph does not use yet."""
    taken = tensor_names(graph)
    if wanted not in taken:
        return wanted
    return next(name for i in range(2, len(taken) + 3) if (name := f"{wanted}_{i}") not in taken)


def label(node: gs.Node) -> str:
    """How an error names a node: operator and name, as a viewer shows them."""
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "without a name")
    return printable(f"{node.op} node {name}")


def captured(node: gs.Node) -> Iterator[gs.Tensor]:
    """Outer tensors that the bodies of a control-flow node read."""
    for body in node.subgraphs(recursive=True):
        for inner in body.nodes:
            yield from (tensor for tensor in inner.inputs if tensor.name)
        yield from body.outputs


def tidy(graph: gs.Graph) -> int:
    """Drop nodes that no output needs and sort the rest; returns how many were dropped.

    The order is stable: among the nodes that are ready, the one that stood first stays first. So two
    compilations of one model give the same file, and dumps before and after a pass can be compared.
    """
    before = len(graph.nodes)
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    needed: dict[int, gs.Node] = {}
    waiting: dict[int, set[int]] = {}
    followers: dict[int, list[int]] = {}
    stack = [node for output in graph.outputs for node in output.inputs]
    while stack:
        node = stack.pop()
        key = id(node)
        if key in needed or key not in position:
            continue
        needed[key] = node
        sources = {
            id(writer): writer
            for tensor in (*node.inputs, *captured(node))
            for writer in tensor.inputs
            if id(writer) in position
        }
        waiting[key] = set(sources)
        for source, writer in sources.items():
            followers.setdefault(source, []).append(key)
            stack.append(writer)
    for node in graph.nodes:
        if id(node) not in needed:
            detach(node)
    ready = [(position[key], key) for key, sources in waiting.items() if not sources]
    heapq.heapify(ready)
    ordered = []
    while ready:
        _, key = heapq.heappop(ready)
        ordered.append(needed[key])
        for follower in followers.get(key, ()):
            waiting[follower].discard(key)
            if not waiting[follower]:
                heapq.heappush(ready, (position[follower], follower))
    if len(ordered) != len(needed):
        raise ValueError("the graph has a cycle")
    graph.nodes.clear()
    graph.nodes.extend(ordered)
    return before - len(ordered)
