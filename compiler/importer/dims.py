"""Binding symbolic dimensions.

After import the dimensions of a language model have one spelling, whatever the exporter called them:
batch is 1, `sequence_length` counts the tokens of a call, `past_sequence_length` the positions in the
cache before it, `total_sequence_length` those after it. All of them stay symbolic here; each program
binds its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import is_graph_input, is_graph_output, nodes, operand, result
from .config import ModelConfig

PAST_INPUT = 3  # of GroupQueryAttention: past_key; past_value follows
SEQUENCE, PAST, TOTAL = "sequence_length", "past_sequence_length", "total_sequence_length"


def bind_dims(graph: gs.Graph, config: ModelConfig, dims: Mapping[str, int]) -> None:
    """Bind `dims` by name, batch to 1, and give the sequence dimensions their canonical names.

    Raises:
        CompileError: `dims` names a dimension that the model has not, or the batch is not 1.
    """
    for port in graph.inputs:
        if port.shape is not None:
            port.shape = [
                f"{port.name}_dim{i}" if dim in (None, "") else dim for i, dim in enumerate(port.shape)
            ]
    symbols = {dim for port in graph.inputs for dim in port.shape or () if isinstance(dim, str)}
    for name in dims:
        if name not in symbols:
            have = ", ".join(sorted(symbols)) or "none"
            raise CompileError(f"--dim {name}", "the model has no such dimension", f"it has: {have}")
    renames: dict[str, int | str] = {}
    if _is_decoder(graph):
        renames = _decoder_dims(graph, config)
    elif "batch_size" in symbols:
        renames["batch_size"] = 1
    renames.update(dims)
    if dims.get("batch_size", 1) != 1:
        raise CompileError("--dim batch_size", "only batch 1 is supported", "leave it out")
    for tensor in _variables(graph):
        if tensor.shape is not None:
            tensor.shape = [renames.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape]


def _is_decoder(graph: gs.Graph) -> bool:
    return any(past is not None and is_graph_input(graph, past) for past, _ in caches(graph))


def _decoder_dims(graph: gs.Graph, config: ModelConfig) -> dict[str, int | str]:
    renames: dict[str, int | str] = {}

    def rename(port: gs.Tensor, axis: int, target: int | str) -> None:
        if port.shape is None or len(port.shape) <= axis:
            return
        dim = port.shape[axis]
        if isinstance(dim, str):
            renames.setdefault(dim, target)
        elif target == 1 and dim != 1:
            problem = f"its batch dimension is {dim}"
            raise CompileError(
                f"input {port.name}", problem, "only batch 1 is supported, export with batch 1"
            )

    by_name = {port.name: port for port in graph.inputs}
    for name, length in ((config.token_input, SEQUENCE), (config.mask_input, TOTAL)):
        if name in by_name:
            rename(by_name[name], 0, 1)
            rename(by_name[name], 1, length)
    for past, present in caches(graph):
        if past is not None and is_graph_input(graph, past):
            rename(past, 0, 1)
            rename(past, 2, PAST)
        if present is not None and is_graph_output(graph, present):
            rename(present, 0, 1)
            rename(present, 2, TOTAL)
    return renames


def caches(graph: gs.Graph) -> list[tuple[gs.Tensor | None, gs.Tensor | None]]:
    """(past, present) of every key and value cache, in the order of the nodes."""
    found = []
    for node in nodes(graph, "GroupQueryAttention"):
        found += [(operand(node, PAST_INPUT + i), result(node, 1 + i)) for i in (0, 1)]
    return found


def _variables(graph: gs.Graph) -> list[gs.Variable]:
    found = {id(port): port for port in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        found.update({id(tensor): tensor for tensor in (*node.inputs, *node.outputs) if tensor.name})
    return [tensor for tensor in found.values() if isinstance(tensor, gs.Variable)]
