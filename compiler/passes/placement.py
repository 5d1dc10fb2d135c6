"""Where a conventional WebGPU runtime would run each node, and where it would copy.

The rules are those of ONNX Runtime's WebGPU provider: `Shape` answers on the host, 64-bit integer
arithmetic and control flow run there, and some kernels want an operand in host memory. The copies are
made explicit as MemcpyToHost and MemcpyFromHost nodes (default domain, as ONNX Runtime writes them, which
it also runs), so that a dump shows the problem and the passes have something to remove.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import fresh_name, is_constant, is_graph_output, nodes, operand, readers, replace_reads

TO_HOST, FROM_HOST = "MemcpyToHost", "MemcpyFromHost"
COPIES = (TO_HOST, FROM_HOST)
METADATA = ("Shape", "Size")  # answered on the host without reading the tensor
CONTROL = ("If", "Loop", "Scan")
INT64_ON_DEVICE = ("Cast", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose")
HOST_OPERANDS: dict[str, tuple[int, ...]] = {
    "GroupQueryAttention": (6,),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 2, 3),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Resize": (1, 2, 3),
    "TopK": (1,),
    "OneHot": (1,),
    "CumSum": (1,),
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Trilu": (1,),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"),
        (1,),
    ),
    "If": (0,),
    "Loop": (0, 1),
}
"""Operands that kernels want in host memory. Constants there cost nothing and are never copied."""


def memcpy_nodes(graph: gs.Graph) -> list[gs.Node]:
    return nodes(graph, *COPIES)


def host_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that would run on the host."""
    placed = place(graph)
    return [node for node in graph.nodes if placed.get(id(node)) == "host"]


def place(graph: gs.Graph) -> dict[int, str]:
    """`host` or `device` for every node but the copies, by the node's id.

    A node is on the host if it answers from metadata, is control flow, computes on 64-bit integers, or has
    only host operands and integers or booleans to compute. Graph inputs are on the device.
    """
    on_host: set[int] = set()  # tensors, by id
    placed: dict[int, str] = {}
    for node in graph.nodes:
        if node.op in COPIES:
            if node.op == TO_HOST:
                on_host.update(id(tensor) for tensor in node.outputs)
            continue
        place_of = "host" if _belongs_on_host(node, on_host) else "device"
        placed[id(node)] = place_of
        if place_of == "host":
            on_host.update(id(tensor) for tensor in node.outputs)
    return placed


def _belongs_on_host(node: gs.Node, on_host: set[int]) -> bool:
    if node.op in METADATA or node.op in CONTROL:
        return True
    operands = [tensor for tensor in node.inputs if tensor.name and not is_constant(tensor)]
    integral = all(_kind(tensor) in "iub" for tensor in node.outputs if tensor.name)
    if operands and integral and all(id(tensor) in on_host for tensor in operands):
        return True
    wide = any(_is_int64(tensor) for tensor in (*operands, *node.outputs) if tensor.name)
    if not wide:
        return False
    if node.op in INT64_ON_DEVICE:
        return bool(node.op != "Cast" and _is_int64(node.outputs[0]))
    return integral


def insert_memcpy(graph: gs.Graph) -> int:
    """host(device value)  =>  host(MemcpyToHost(device value)), and the other way round

    One copy per value, however many nodes read it.
    """
    placed = place(graph)
    on_host = {
        id(tensor)
        for node in graph.nodes
        if placed.get(id(node)) == "host" or node.op == TO_HOST
        for tensor in node.outputs
    }
    copies: dict[tuple[int, str], gs.Variable] = {}
    for node in list(graph.nodes):
        if node.op in COPIES or node.op in METADATA:
            continue
        for index, tensor in enumerate(node.inputs):
            if not tensor.name or is_constant(tensor):
                continue
            wants_host = placed[id(node)] == "host" or index in HOST_OPERANDS.get(node.op, ())
            if wants_host != (id(tensor) in on_host):
                op = TO_HOST if wants_host else FROM_HOST
                node.inputs[index] = _copy(graph, tensor, op, copies)
    outputs = [tensor for tensor in graph.outputs if id(tensor) in on_host]
    for tensor in outputs:
        _copy_output(graph, tensor)
    return len(copies) + len(outputs)


def remove_memcpy(graph: gs.Graph) -> int:
    """Memcpy(x)  =>  x, where neither the writer nor a reader of x is on the host any more"""
    removed = 0
    for node in memcpy_nodes(graph):
        source, target = node.inputs[0], node.outputs[0]
        if is_graph_output(graph, target):
            removed += _remove_output_copy(graph, node)
            continue
        position = next(i for i, other in enumerate(graph.nodes) if other is node)
        graph.nodes.pop(position)
        links = [(r, i) for r in readers(target) for i, tensor in enumerate(r.inputs) if tensor is target]
        for reader, index in links:
            reader.inputs[index] = source
        if _still_needed(graph, source, links, node.op):
            for reader, index in links:
                reader.inputs[index] = target
            graph.nodes.insert(position, node)
            continue
        node.inputs.clear()
        node.outputs.clear()
        removed += 1
    return removed


def _remove_output_copy(graph: gs.Graph, node: gs.Node) -> int:
    """Let the writer of a copied graph output write it itself, once it is on the device."""
    source, target = node.inputs[0], node.outputs[0]
    placed = place(graph)
    writer = source.inputs[0] if source.inputs else None
    users = [writer, *(reader for reader in readers(source) if reader is not node)]
    if writer is None or any(user.op in COPIES or placed[id(user)] == "host" for user in users):
        return 0
    node.inputs.clear()
    node.outputs.clear()
    replace_reads(graph, source, target)
    writer.outputs[next(i for i, output in enumerate(writer.outputs) if output is source)] = target
    return 1


def _still_needed(graph: gs.Graph, source: gs.Tensor, links: list[tuple[gs.Node, int]], op: str) -> bool:
    if is_constant(source):
        return False
    placed = place(graph)
    writer = source.inputs[0] if source.inputs else None
    on_host = writer is not None and (placed.get(id(writer)) == "host" or writer.op == TO_HOST)
    wanted = [
        placed.get(id(reader)) == "host" or index in HOST_OPERANDS.get(reader.op, ())
        for reader, index in links
    ]
    return any(want != on_host for want in wanted)


def _copy(
    graph: gs.Graph, tensor: gs.Tensor, op: str, copies: dict[tuple[int, str], gs.Variable]
) -> gs.Variable:
    key = (id(tensor), op)
    if key not in copies:
        name = fresh_name(graph, f"{tensor.name}/{op}")
        copies[key] = gs.Variable(name, tensor.dtype, tensor.shape)
        graph.nodes.append(gs.Node(op, name, inputs=[tensor], outputs=[copies[key]]))
    return copies[key]


def _copy_output(graph: gs.Graph, tensor: gs.Tensor) -> None:
    """Let the host node write another value, and the copy the graph output."""
    name = fresh_name(graph, f"{tensor.name}/host")
    inner = gs.Variable(name, tensor.dtype, tensor.shape)
    writer = tensor.inputs[0]
    index = next(i for i, output in enumerate(writer.outputs) if output is tensor)
    for node in readers(tensor):
        for position, entry in enumerate(node.inputs):
            if entry is tensor:
                node.inputs[position] = inner
    writer.outputs[index] = inner
    graph.nodes.append(gs.Node(FROM_HOST, f"{tensor.name}/{FROM_HOST}", inputs=[inner], outputs=[tensor]))


def host_reason(node: gs.Node) -> str:
    """Why a node would run on the host, as an error says it."""
    if node.op in METADATA:
        return "it asks for a shape, which only the host knows"
    if node.op in CONTROL:
        return "control flow runs on the host"
    if any(_is_int64(tensor) for tensor in (*node.inputs, *node.outputs) if tensor.name):
        return "it computes on 64-bit integers, which WebGPU has not"
    return "all it computes on is on the host"


def wants_host(node: gs.Node, index: int) -> bool:
    """Whether operand `index` of a node is wanted in host memory."""
    return index in HOST_OPERANDS.get(node.op, ()) and operand(node, index) is not None


def _kind(tensor: gs.Tensor) -> str:
    return "?" if tensor.dtype is None else np.dtype(tensor.dtype).kind


def _is_int64(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype) == np.int64
