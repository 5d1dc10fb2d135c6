"""The checklist of the device graph. What fails here cannot run on the GPU, and the user is told why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import is_constant, label
from .function_bodies import MODEL_CALLS
from .functions import is_call
from .placement import CONTROL, HOST_OPERANDS, METADATA, TO_HOST, host_reason, memcpy_nodes, place
from .sequence_length import WORD

HINTS = {
    "If": "only an If between two constant tables, chosen by the sequence length, can be resolved",
    "Shape": "bind the dimension with --dim NAME=SIZE, so that the shape is known at compile time",
    "operand": "make that operand a constant when you export",
    "int64": "export the model with 32-bit integers there",
}


def verify(graph: gs.Graph, knows: Callable[[gs.Node], bool] | None = None, on_host: bool = False) -> None:
    """Check the device graph: no copy, no host node, no 64-bit integer, every operator known.

    Args:
        knows: whether there is a lowering for a node; None leaves that to lowering.
        on_host: permit the one MemcpyToHost of `--sequence-length host`.

    Raises:
        CompileError: naming the node, the reason and what to do.
    """
    check_structure(graph)
    check_host_nodes(graph)
    check_copies(graph, on_host)
    check_integers(graph)
    if knows is not None:
        check_operators(graph, knows)


def check_is_model(graph: gs.Graph) -> None:
    """A dump of the model may be compiled again, a dump of one of its programs not."""
    for node in graph.nodes:
        if is_call(node) and node.op not in MODEL_CALLS:
            problem = "it belongs to one program of a model, as dumps named after a program do"
            raise CompileError(label(node), problem, "compile the model itself, or an earlier dump of it")


def check_structure(graph: gs.Graph) -> None:
    """Every value is written once and before it is read; every constant has one name."""
    written = {tensor.name for tensor in graph.inputs}
    constants: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                if constants.setdefault(tensor.name, tensor) is not tensor:
                    raise _broken(node, f"two constants are named {tensor.name}")
            elif tensor.name and tensor.name not in written:
                raise _broken(node, f"it reads {tensor.name} before anything writes it")
        for tensor in node.outputs:
            if tensor.name and (tensor.name in written or tensor.name in constants):
                raise _broken(node, f"it writes {tensor.name}, which exists already")
            written.add(tensor.name)
    for tensor in graph.outputs:
        if tensor.name not in written and not is_constant(tensor):
            raise CompileError(f"output {tensor.name}", "nothing writes it", "report this as a bug")


def check_copies(graph: gs.Graph, on_host: bool) -> None:
    """No Memcpy node; for `--sequence-length host` exactly the one of the sequence length."""
    for node in memcpy_nodes(graph):
        allowed = on_host and node.op == TO_HOST and node.inputs[0].name == WORD
        if not allowed:
            reader = next((reader for tensor in node.outputs for reader in tensor.outputs), node)
            value = node.inputs[0].name
            problem = f"it needs {value} copied between GPU and host"
            raise CompileError(label(reader), problem, HINTS["operand"])
    if on_host and len(memcpy_nodes(graph)) > 1:
        raise CompileError(
            "--sequence-length host", "more than one copy to the host is left", "report this as a bug"
        )


def check_host_nodes(graph: gs.Graph) -> None:
    """No node that a conventional runtime would put on the host."""
    placed = place(graph)
    for node in graph.nodes:
        if placed.get(id(node)) == "host":
            raise CompileError(label(node), f"it cannot run on the GPU: {host_reason(node)}", _hint(node))


def check_integers(graph: gs.Graph) -> None:
    """No 64-bit value; constants only where they are parameters, which never reach the GPU."""
    for port in graph.inputs:
        if _wide(port):
            raise CompileError(
                f"input {port.name}", "it has 64-bit integers, which WebGPU has not", HINTS["int64"]
            )
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            parameter = is_constant(tensor) and index in HOST_OPERANDS.get(node.op, ())
            if tensor.name and _wide(tensor) and not parameter:
                raise CompileError(
                    label(node), f"its input {tensor.name} has 64-bit integers", HINTS["int64"]
                )
        for tensor in node.outputs:
            if tensor.name and _wide(tensor):
                raise CompileError(
                    label(node), f"its output {tensor.name} has 64-bit integers", HINTS["int64"]
                )


def check_operators(graph: gs.Graph, knows: Callable[[gs.Node], bool]) -> None:
    """Every operator has a lowering."""
    for node in graph.nodes:
        if not knows(node) and node.op != TO_HOST:
            domain = f"{node.domain}." if node.domain else ""
            raise CompileError(
                label(node),
                f"operator {domain}{node.op} cannot run on the GPU, no lowering is registered for it",
                "see docs/ops.md for what is supported and docs/adding-an-op.md for adding it",
            )


def _hint(node: gs.Node) -> str:
    if node.op in CONTROL:
        return HINTS["If"]
    if node.op in METADATA:
        return HINTS["Shape"]
    if any(tensor.dtype is not None and _wide(tensor) for tensor in (*node.inputs, *node.outputs)):
        return HINTS["int64"]
    return HINTS["Shape"]


def _wide(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype) in (np.int64, np.uint64)


def _broken(node: gs.Node, problem: str) -> CompileError:
    return CompileError(label(node), problem, "report this as a bug, with the model if you can")
