"""What the caller of a compiled model sees: the ports as the model's author named them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import is_graph_input, is_graph_output, label, nodes, operand, result
from ..importer import ImportedModel, ModelConfig, Port
from ..importer.dims import PAST_INPUT
from .sequence_length import WORD


@dataclass(frozen=True, slots=True)
class KvPair:
    """A key or value cache: `past` and `present` are one buffer on the GPU.

    Shape [1, kv_heads, length, head_size].
    """

    past: str
    present: str
    kv_heads: int
    head_size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Interface:
    """The ports of a model before and after the passes.

    Args:
        inputs, outputs: as in the file, in order, with their original dtypes.
        tokens: name of the token input; None for a model that is not a decoder.
        logits: name of the logits output; None likewise.
        state: name of the sequence-length input of the device graph; None likewise.
        caches: all keys and values, in the order of the layers (key, value, key, value, …).
        given: inputs that the caller gives: everything but caches, mask and lengths.
        returned: outputs that the caller gets: everything but caches.
        pruned: whether the model computes the last position's logits only.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tokens: str | None
    logits: str | None
    state: str | None
    caches: tuple[KvPair, ...]
    given: tuple[str, ...]
    returned: tuple[str, ...]
    pruned: bool = False

    @property
    def is_decoder(self) -> bool:
        return bool(self.caches)


def make_interface(model: ImportedModel, graph: gs.Graph, pruned: bool) -> Interface:
    """The interface of a device graph.

    Raises:
        CompileError: a decoder without a token input or logits.
    """
    caches = _caches(graph)
    own = {name for cache in caches for name in (cache.past, cache.present)}
    given = tuple(port.name for port in graph.inputs if port.name not in own and port.name != WORD)
    returned = tuple(port.name for port in graph.outputs if port.name not in own)
    tokens = logits = state = None
    if caches:
        tokens = _tokens(graph, model.config, given)
        logits = _logits(graph, model.config, returned)
        state = WORD
    return Interface(model.inputs, model.outputs, tokens, logits, state, caches, given, returned, pruned)


def bind_caches(graph: gs.Graph) -> int:
    """past [1, heads, past_sequence_length, "kv_cache_dim"]  =>  past [1, heads, past_sequence_length, size]

    The exporter leaves the head size symbolic; the attention node knows it.
    """
    bound = 0
    for node in nodes(graph, "GroupQueryAttention"):
        for past_index, present_index in ((3, 1), (4, 2)):
            past, present = operand(node, past_index), result(node, present_index)
            if past is None or present is None or past.shape is None or present.shape is None:
                continue
            if len(past.shape) != 4:
                problem = f"its cache {past.name} has {len(past.shape)} dimensions, not 4"
                raise CompileError(label(node), problem, "check the export")
            wanted = [*past.shape[:3], present.shape[3]]
            if isinstance(past.shape[3], int) and past.shape[3] != present.shape[3]:
                problem = f"its cache has head size {past.shape[3]}, its queries {present.shape[3]}"
                raise CompileError(label(node), problem, "check the export")
            if list(past.shape) != wanted:
                past.shape = wanted
                bound += 1
    return bound


def _caches(graph: gs.Graph) -> tuple[KvPair, ...]:
    pairs = []
    for node in nodes(graph, "GroupQueryAttention"):
        for offset in (0, 1):
            past, present = operand(node, PAST_INPUT + offset), result(node, 1 + offset)
            if past is None or present is None:
                continue
            if not is_graph_input(graph, past) or not is_graph_output(graph, present):
                problem = "its key-value cache does not go through graph inputs and outputs"
                raise CompileError(label(node), problem, "export the model with past_key_values")
            _, heads, _, size = present.shape
            pairs.append(KvPair(past.name, present.name, int(heads), int(size), np.dtype(past.dtype).name))
    return tuple(pairs)


def _tokens(graph: gs.Graph, config: ModelConfig, given: tuple[str, ...]) -> str:
    if config.token_input in given:
        return config.token_input
    integral = [p.name for p in graph.inputs if p.name in given and np.dtype(p.dtype).kind in "iu"]
    if len(integral) == 1:
        return str(integral[0])
    raise CompileError("the graph", "no token input was recognised", f"name it {config.token_input}")


def _logits(graph: gs.Graph, config: ModelConfig, returned: tuple[str, ...]) -> str:
    if config.logits_output in returned:
        return config.logits_output
    floats = [p.name for p in graph.outputs if p.name in returned and np.dtype(p.dtype).kind == "f"]
    if len(floats) == 1:
        return str(floats[0])
    raise CompileError("the graph", "no logits output was recognised", f"name it {config.logits_output}")
