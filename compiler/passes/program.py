"""From the device graph to the graph of one program: sizes bound, rewritten for its number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from ..options import CompileOptions
from .dump import Dumper
from .front import DeviceModel, program_group
from .runner import PassRecord, Runner
from .shapes import concrete_shapes, infer_shapes


@dataclass(frozen=True, slots=True)
class ProgramGraph:
    """What lowering turns into kernels, a node after the other."""

    name: str
    graph: gs.Graph
    shapes: Mapping[str, tuple[int, ...]]
    passes: tuple[PassRecord, ...]


def program_graph(
    device: DeviceModel, options: CompileOptions, name: str, rows: int = 0, *, all_logits: bool = False
) -> ProgramGraph:
    """The graph of program `name`; weights are shared with the device graph.

    Args:
        rows: positions of a sequence that the program takes; 0 for a model without.
        all_logits: whether it computes the logits of every position, or of the last one only.

    Raises:
        CompileError: a dimension stays unbound, or the last position cannot be told from the others.
    """
    graph = device.graph.copy()
    dims = {"batch_size": 1, "sequence_length": rows} if rows else {}
    for port in graph.inputs:
        port.shape = [dims.get(dim, dim) for dim in port.shape]
    infer_shapes(graph)
    runner = Runner(
        frozenset(options.disable_passes),
        (Dumper(options.dump, f"{name}-"),) if options.dump is not None else (),
    )
    logits = device.interface.logits if rows and not all_logits else None
    runner.run(graph, program_group(name, options, logits))
    return ProgramGraph(name, graph, concrete_shapes(graph, {}), tuple(runner.records))
