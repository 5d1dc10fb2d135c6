"""LongRoPE: two tables of cosines and sines, and the sequence length decides which is read.

Both exports come to one form, in which the choice is made on the GPU:

    cos_cache = Where(total_sequence_length > threshold, long table, short table)

The short table is padded with zeros to the rows of the long one. The padding is never read: the short
table has `threshold` rows, and longer sequences use the other. (Microsoft's Phi-3 and Phi-4 models; arXiv
2402.13753.)
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import detach, fresh_name, is_constant, label, nodes, operand, readers
from ..importer.config import ModelConfig
from ..importer.external import ExternalValues, InlineValues, PaddedValues
from .affine import Greater
from .sequence_length import Lengths
from .simplify import constant_node_value

COS, SIN = 7, 8  # inputs of GroupQueryAttention

log = logging.getLogger(__name__)


def if_to_where(graph: gs.Graph) -> int:
    """If(condition) { two constants }  =>  Where(condition, padded constant, padded constant)

    Only where both branches hold nothing but constants of one width.
    """
    replaced = 0
    for node in nodes(graph, "If"):
        sides = [_branch_constants(node.attrs.get(name)) for name in ("then_branch", "else_branch")]
        then, other = sides
        if then is None or other is None:
            log.info("%s stays: a branch computes something", label(node))
            continue
        if any(a.shape[1:] != b.shape[1:] for a, b in zip(then, other, strict=True)):
            log.info("%s stays: the branches have tables of different width", label(node))
            continue
        condition, outputs = node.inputs[0], list(node.outputs)
        detach(node)
        for output, a, b in zip(outputs, then, other, strict=True):
            _insert_where(graph, condition, output, a, b)
        replaced += 1
    return replaced


def split_rotary_cache(graph: gs.Graph, config: ModelConfig) -> int:
    """one table, short rows first  =>  Where(total > offset, long rows, short rows)

    The graph-capture export concatenates the tables and lets the kernel add `offset`
    (`multiRotaryCacheConcatOffset`) to the row. Both halves stay where they lie in the file.
    """
    split = 0
    for node in nodes(graph, "GroupQueryAttention"):
        cos, sin = operand(node, COS), operand(node, SIN)
        if cos is None or sin is None or not is_constant(cos) or not is_constant(sin):
            continue
        offset = concatenation_offset(cos, sin, config)
        if offset is None or not 0 < offset < cos.shape[0]:
            continue
        condition = Lengths(graph).greater(Greater(offset))
        assert condition is not None
        for table in (cos, sin):
            short, long = _rows(table, 0, offset), _rows(table, offset, table.shape[0])
            chosen = gs.Variable(fresh_name(graph, f"{table.name}/chosen"), table.dtype, None)
            _insert_where(graph, condition, chosen, long, short)
            for reader in readers(table):
                for index, tensor in enumerate(reader.inputs):
                    if tensor is table:
                        reader.inputs[index] = chosen
        split += 1
    return split


def concatenation_offset(cos: gs.Constant, sin: gs.Constant, config: ModelConfig) -> int | None:
    """Rows of the short table, or None for an ordinary cache.

    Said by genai_config.json; else, where the table has more rows than the context, the second table's
    row 0 is recognised by its sines, which are all zero for position 0 and for no other.
    """
    if config.rotary_offset is not None:
        return config.rotary_offset
    if config.context_length is None or cos.shape[0] <= config.context_length:
        return None
    offset = int(cos.shape[0] - config.context_length)
    try:
        row = np.asarray(_rows(sin, offset, offset + 1).load())
    except FileNotFoundError:
        return None
    return offset if not row.any() else None


def _rows(table: gs.Constant, start: int, stop: int) -> ExternalValues | InlineValues:
    values = table._values
    if isinstance(values, ExternalValues):
        return values.rows(start, stop)
    array = values if isinstance(values, np.ndarray) else values.load()
    return in_memory(f"{table.name}[{start}:{stop}]", array[start:stop])


def in_memory(key: str, array: np.ndarray) -> InlineValues:
    """Lazy values over an array that exists already."""
    from onnx import numpy_helper

    return InlineValues(key, numpy_helper.from_array(np.ascontiguousarray(array), key))


def _insert_where(
    graph: gs.Graph,
    condition: gs.Tensor,
    output: gs.Tensor,
    then: ExternalValues | InlineValues,
    other: ExternalValues | InlineValues,
) -> None:
    rows = max(then.shape[0], other.shape[0])
    sides = []
    for side in (then, other):
        values = side if side.shape[0] == rows else PaddedValues(side, rows)
        sides.append(gs.Constant(fresh_name(graph, values.key), values))
    output.dtype, output.shape = np.dtype(then.dtype), [rows, *then.shape[1:]]
    graph.nodes.insert(
        0, gs.Node("Where", f"{output.name}/Where", inputs=[condition, *sides], outputs=[output])
    )


def _branch_constants(branch: gs.Graph | None) -> list[ExternalValues | InlineValues] | None:
    if branch is None:
        return None
    found = []
    for output in branch.outputs:
        values = output._values if isinstance(output, gs.Constant) else None
        writer = output.inputs[0] if output.inputs else None
        if values is None and writer is not None and writer.op == "Constant":
            values = constant_node_value(writer)
        if values is None:
            return None
        found.append(in_memory(output.name, values) if isinstance(values, np.ndarray) else values)
    return found


def constants_of_where(node: gs.Node) -> tuple[int, gs.Constant, gs.Constant] | None:
    """(threshold, long, short) of the canonical form, for lowering; None if the node is something else."""
    condition = operand(node, 0)
    writer = condition.inputs[0] if condition is not None and condition.inputs else None
    long, short = operand(node, 1), operand(node, 2)
    if node.op != "Where" or writer is None or writer.op != "Greater":
        return None
    if not isinstance(long, gs.Constant) or not isinstance(short, gs.Constant):
        return None
    threshold = writer.inputs[1]
    if not isinstance(threshold, gs.Constant):
        return None
    return int(np.asarray(threshold.values).reshape(-1)[0]), long, short
