"""Import, placement and all graph passes: from a path to a device graph.

The order of the passes is here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import tidy
from ..importer import ImportedModel, ModelConfig, load_model
from ..importer.external import storage_key
from ..options import CompileOptions
from .argmax import append_argmax, fuse_argmax
from .dump import Dumper
from .embedding import gather_columns, gather_padded_rows
from .fuse_attention import fuse_qkv_attention
from .fuse_bias import fuse_matmul_bias
from .fuse_gated_mlp import fuse_gated_mlp
from .fuse_quantize import fuse_quantize
from .fuse_residual_norm import fuse_residual_norm
from .int64 import narrow_int64
from .interface import Interface, bind_caches, make_interface
from .placement import host_nodes, insert_memcpy, memcpy_nodes, remove_memcpy
from .precision import undo_inserted_casts
from .prune import drop_last_token, fold_prune, is_pruned, select_last_token
from .quantize import quantize_activations
from .rotary_cache import if_to_where, split_rotary_cache
from .runner import Group, Pass, PassRecord, Runner, pass_name
from .sequence_length import check_mask_is_gone, sequence_length_on_host, sequence_length_to_gpu
from .shapes import infer_shapes
from .simplify import (
    alias_reshaped_weights,
    constants_to_initializers,
    drop_casts,
    drop_identities,
    fold_constants,
    merge_casts,
)
from .symbolic import fold_shapes
from .verify import check_is_model, verify

MODEL_FUSIONS: tuple[Pass, ...] = (fuse_matmul_bias, fuse_gated_mlp)
PROGRAM_FUSIONS: tuple[Pass, ...] = (fuse_qkv_attention, fuse_residual_norm, fuse_quantize, fuse_argmax)
FUSIONS = (*MODEL_FUSIONS, *PROGRAM_FUSIONS)
"""What `--disable-pass` may name."""

SIMPLIFY = (
    constants_to_initializers,
    fold_constants,
    drop_identities,
    drop_casts,
    merge_casts,
    alias_reshaped_weights,
)


class Telling(Protocol):
    """What of the pipeline's observer is used here."""

    def stage(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """What the passes came to, for the summary."""

    nodes_before: int
    nodes_after: int
    memcpy_before: int
    memcpy_after: int
    host_nodes_before: int
    host_nodes_after: int
    passes: tuple[PassRecord, ...] = ()
    seconds: float = 0.0

    def by_pass(self) -> dict[str, tuple[int, float]]:
        """(changes, seconds) by pass name, in the order of first runs."""
        totals: dict[str, tuple[int, float]] = {}
        for record in self.passes:
            changes, seconds = totals.get(record.name, (0, 0.0))
            totals[record.name] = (changes + record.changes, seconds + record.seconds)
        return totals


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A graph that runs on the GPU as it stands, with what its caller must know."""

    graph: gs.Graph
    interface: Interface
    config: ModelConfig
    counts: Counts
    folder: Path
    file: Path
    weights: dict[str, gs.Constant] = field(default_factory=dict)

    def array(self, key: str) -> np.ndarray:
        """The bytes known as `key` (`storage_key`), in the shape of the model's own initializer.

        A view of the mapped file: copy what you keep. A weight whose file is missing (`--check`) raises
        FileNotFoundError.
        """
        values = self.weights[key]._values
        if isinstance(values, np.ndarray):
            return values
        return np.asarray(values.load()).reshape(getattr(values, "source_shape", values.shape))


def groups(config: ModelConfig, options: CompileOptions) -> tuple[Group, ...]:
    """The passes over the model, in order."""
    on_host = options.sequence_length == "host"
    shapes = partial(fold_shapes, config=config)
    length = sequence_length_on_host if on_host else sequence_length_to_gpu
    return (
        Group(
            "device",
            (partial(length, config=config), if_to_where, partial(split_rotary_cache, config=config)),
        ),
        Group("simplify", (*SIMPLIFY, shapes, undo_inserted_casts, remove_memcpy), fixed_point=True),
        Group(
            "integers",
            (partial(narrow_int64, config=config), remove_memcpy, partial(check_mask_is_gone, config=config)),
        ),
        Group("fuse", (gather_columns, gather_padded_rows, fold_prune, *MODEL_FUSIONS), fixed_point=True),
    )


def program_group(name: str, options: CompileOptions, logits: str | None) -> Group:
    """The passes over the graph of one program, in order. `logits`: the output of which one row is wanted."""
    one_row: tuple[Pass, ...] = ()
    if logits is not None:
        select, argmax = (partial(rule, logits=logits) for rule in (select_last_token, append_argmax))
        one_row = (select, drop_last_token, argmax)
    quantize = partial(quantize_activations, activations=options.activations)
    fusions = PROGRAM_FUSIONS
    if options.attention_dispatch == "indirect":
        # The kernel that appends to the cache also writes the grid; a product has no binding left for that.
        fusions = tuple(rule for rule in fusions if rule is not fuse_qkv_attention)
    return Group(name, (*one_row, quantize, *fusions))


PLACEMENT = Group("placement", (insert_memcpy,))


def front(
    path: Path,
    options: CompileOptions,
    observer: Telling | None = None,
    knows: Callable[[gs.Node], bool] | None = None,
) -> DeviceModel:
    """Import a model and bring its graph onto the GPU, or as far as `options.stop_after` says.

    Args:
        knows: whether a lowering exists for a node, for the verifier.

    Raises:
        CompileError: the model cannot be compiled; one sentence says why.
    """
    start = time.perf_counter()
    check_disabled(options)
    dumper = Dumper(options.dump) if options.dump is not None else None
    model = load_model(path, options)
    runner = Runner(frozenset(options.disable_passes), (dumper,) if dumper else ())
    graph = model.graph
    check_is_model(graph)
    n_nodes = sum(node.op != "Constant" for node in graph.nodes)
    prepare(graph)
    if dumper:
        dumper.stage("import", graph)
    if options.stop_after == "import":
        return _device_model(model, graph, runner, (n_nodes, 0, 0), start)
    if observer:
        observer.stage("placing nodes on host and GPU")
    runner.run(graph, PLACEMENT)
    before = (n_nodes, len(memcpy_nodes(graph)), len(host_nodes(graph)))
    if options.stop_after == "placement":
        return _device_model(model, graph, runner, before, start)
    if observer:
        observer.stage("rewriting the graph")
    for group in groups(model.config, options):
        runner.run(graph, group)
    verify(graph, knows, on_host=options.sequence_length == "host")
    return _device_model(model, graph, runner, before, start)


def prepare(graph: gs.Graph) -> None:
    """What every pass may count on: constants are initializers, nodes are sorted, shapes are known."""
    constants_to_initializers(graph)
    tidy(graph)
    infer_shapes(graph)
    bind_caches(graph)


def check_disabled(options: CompileOptions) -> None:
    """Only fusions may be left out: without the others the graph does not run.

    Raises:
        CompileError: naming the option and the fusions.
    """
    names = [pass_name(rule) for rule in FUSIONS]
    for name in options.disable_passes:
        if name not in names:
            raise CompileError(
                f"--disable-pass {name}", "that is not a fusion", f"choose from {', '.join(names)}"
            )


def _device_model(
    model: ImportedModel, graph: gs.Graph, runner: Runner, before: tuple[int, int, int], start: float
) -> DeviceModel:
    n_nodes, n_memcpy, n_host = before
    counts = Counts(
        n_nodes,
        len(graph.nodes),
        n_memcpy,
        len(memcpy_nodes(graph)),
        n_host,
        len(host_nodes(graph)),
        tuple(runner.records),
        time.perf_counter() - start,
    )
    weights: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                weights.setdefault(storage_key(tensor), tensor)
    interface = make_interface(model, graph, is_pruned(graph))
    return DeviceModel(graph, interface, model.config, counts, model.folder, model.file, weights)
