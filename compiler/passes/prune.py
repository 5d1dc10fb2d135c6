"""Only the last position's logits are wanted: compute only those.

`LastToken` ([1, S, H] → [1, 1, H]) stands for the exporter's own pruning (`prune_lm_head`), and is what
`select_last_token` inserts in programs that read a prompt. In a padded chunk the last position is not
row S - 1: the kernel takes the row from GPU state.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import (
    fresh_name,
    is_read,
    n_rows,
    nodes,
    operand,
    producer,
    replace_reads,
    result,
    small_value,
    sole_reader,
)
from .functions import DOMAIN, SOURCES, call
from .projection import PROJECTIONS

NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization")
AFTER_LOGITS = ("Cast", "Mul", "Div", "Tanh", "Add", "Identity")


def fold_prune(graph: gs.Graph) -> int:
    """Unsqueeze(Gather(x, -1, axis=1), 1)  =>  LastToken(x)

    Also a Gather with the index [-1], a Reshape in place of the Unsqueeze, and Slice(x, -1, end, axis 1).
    """
    folded = 0
    for gather in nodes(graph, "Gather"):
        index = small_value(operand(gather, 1))
        if gather.attrs.get("axis", 0) != 1 or index is None or index.reshape(-1).tolist() != [-1]:
            continue
        if not _is_sequence(gather.inputs[0]):
            continue
        last = gather if index.ndim == 1 else _restores_axis(graph, gather)
        if last is None:
            continue
        replaced = [gather] if last is gather else [gather, last]
        call(graph, "LastToken", gather.name, [gather.inputs[0]], list(last.outputs), replaced)
        folded += 1
    for node in nodes(graph, "Slice"):
        bounds = [small_value(operand(node, i)) for i in (1, 2, 3)]
        values = [None if bound is None else bound.reshape(-1).tolist() for bound in bounds]
        to_end = values[1] is not None and len(values[1]) == 1 and values[1][0] >= (1 << 31) - 1
        if values[0] == [-1] and to_end and values[2] in ([1], [-2]) and _is_sequence(node.inputs[0]):
            call(graph, "LastToken", node.name, [node.inputs[0]], list(node.outputs), [node])
            folded += 1
    return folded


def _is_sequence(tensor: gs.Tensor) -> bool:
    return tensor.shape is None or len(tensor.shape) == 3


def _restores_axis(graph: gs.Graph, gather: gs.Node) -> gs.Node | None:
    reader = sole_reader(graph, gather.outputs[0])
    if (
        reader is None
        or reader.op not in ("Unsqueeze", "Reshape")
        or reader.inputs[0] is not gather.outputs[0]
    ):
        return None
    parameter = small_value(operand(reader, 1))
    numbers = parameter.reshape(-1).tolist() if parameter is not None else list(reader.attrs.get("axes", []))
    if reader.op == "Unsqueeze":
        return reader if numbers in ([1], [-2]) else None
    width = gather.inputs[0].shape[-1] if gather.inputs[0].shape is not None else None
    fits = len(numbers) == 3 and numbers[0] in (0, 1, -1) and numbers[1] == 1 and numbers[2] in (-1, width)
    return reader if fits and numbers.count(-1) < 2 else None


def is_pruned(graph: gs.Graph) -> bool:
    """Whether the exporter pruned the LM head already."""
    return bool(nodes(graph, "LastToken"))


def select_last_token(graph: gs.Graph, logits: str) -> int:
    """norm(x)  =>  norm(LastToken(x)), for the final norm: the logits are [1, 1, vocabulary] then

    Of a skip norm both inputs are selected. Logits that have one row stay as they are.

    Raises:
        CompileError: the path from the final norm to the logits is not of a known form.
    """
    output = next(tensor for tensor in graph.outputs if tensor.name == logits)
    if n_rows(output) == 1:
        return 0
    norm = _final_norm(graph, output)
    sides = (0, 1) if norm.op.startswith("Skip") else (0,)
    for index in sides:
        source = norm.inputs[index]
        name = fresh_name(graph, f"{source.name}/last")
        last = gs.Variable(name, source.dtype)
        graph.nodes.append(gs.Node("LastToken", name, {SOURCES: [norm.name]}, [source], [last], DOMAIN))
        norm.inputs[index] = last
    return len(sides)


def drop_last_token(graph: gs.Graph) -> int:
    """LastToken(x)  =>  x, where x has one row"""
    dropped = 0
    for node in nodes(graph, "LastToken"):
        if n_rows(node.inputs[0]) == 1:
            replace_reads(graph, node.outputs[0], node.inputs[0])
            dropped += 1
    return dropped


def _final_norm(graph: gs.Graph, output: gs.Tensor) -> gs.Node:
    """The norm before the LM head: its only reader is the head, whose readers lead to the logits alone."""
    node = producer(output)
    while node is not None and node.op in AFTER_LOGITS:
        node = producer(node.inputs[0])
    if node is not None and node.op in PROJECTIONS:
        node = producer(node.inputs[0])
    while node is not None and node.op == "Cast":
        node = producer(node.inputs[0])
    if node is None or node.op not in NORMS or not _private(graph, node):
        raise CompileError(
            f"output {output.name}",
            "no final norm and LM head were recognised before it",
            "export with prune_lm_head, or compile without prefill programs",
        )
    return node


def _private(graph: gs.Graph, norm: gs.Node) -> bool:
    others = [result(norm, index) for index in range(1, len(norm.outputs))]
    if any(is_read(graph, tensor) for tensor in others):
        return False
    return sole_reader(graph, norm.outputs[0]) is not None
