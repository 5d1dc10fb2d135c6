"""`total_sequence_length` moves onto the GPU.

The device graph has one new input, `total_sequence_length` (int32, shape [1]): the positions in the cache
once this call has appended its own. On the GPU that is a word of state, so nothing is uploaded, nothing
copied to the host, and the attention mask has no reader left.

    plain:   ReduceSum(mask, 1) → Sub 1 → Cast = seqlens_k      Shape(mask) → Gather 1 → Cast = total
    graph:   Cast(mask) → ReduceSum → { Sub 1 = seqlens_k, ReduceMax = total }
    mobius:  Cast(Gather(ReduceSum(mask, 1), 0)) = total
    =>       seqlens_k = Sub(total_sequence_length, 1)          total = total_sequence_length

The spellings are not matched one by one: `symbolic.py` proves what a value is.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import is_graph_output, label, nodes, operand, readers
from ..importer.config import ModelConfig
from ..importer.dims import TOTAL
from .affine import SEQLENS, TOTAL_LENGTH, Affine, Greater, Symbolic, Value
from .placement import COPIES, TO_HOST
from .symbolic import evaluate

WORD = TOTAL
SEQLENS_NAME = "seqlens_k"

log = logging.getLogger(__name__)


def sequence_length_to_gpu(graph: gs.Graph, config: ModelConfig) -> int:
    """any spelling of total_sequence_length and of what follows from it  =>  one GPU word"""
    return _rewrite(graph, config, on_host=False)


def sequence_length_on_host(graph: gs.Graph, config: ModelConfig) -> int:
    """any spelling of total_sequence_length  =>  MemcpyToHost(one GPU word), for comparison only

    The one copy feeds input 6 of GroupQueryAttention, as a runtime without graph capture would.
    """
    return _rewrite(graph, config, on_host=True)


def _rewrite(graph: gs.Graph, config: ModelConfig, on_host: bool) -> int:
    known = evaluate(graph, config)
    lengths = Lengths(graph)
    changed = 0
    for node in list(graph.nodes):
        if node.op == "GroupQueryAttention":
            changed += _rewrite_attention(node, known, lengths, on_host)
        elif not any(id(tensor) in known for tensor in node.outputs):
            changed += _rewrite_reader(node, known, lengths)
    changed += _drop_unused_inputs(graph, config)
    return changed


def _rewrite_attention(node: gs.Node, known: dict[int, Value], lengths: Lengths, on_host: bool) -> int:
    """Inputs 5 and 6 of GroupQueryAttention must be provably total - 1 and total."""
    for index, expected, what in ((5, SEQLENS, SEQLENS_NAME), (6, TOTAL_LENGTH, WORD)):
        tensor = operand(node, index)
        value = known.get(id(tensor)) if tensor is not None else None
        if tensor is None or not isinstance(value, Symbolic) or value.elements != (expected,):
            found = (
                value.elements[0].text() if isinstance(value, Symbolic) and value.elements else "not known"
            )
            raise CompileError(
                label(node),
                f"its input {index} ({what}) should be {expected.text()}, but is {found}",
                "export the model with onnxruntime-genai's model builder",
            )
    node.inputs[5] = lengths.seqlens()
    node.inputs[6] = lengths.on_host() if on_host else lengths.total()
    return 1


def _rewrite_reader(node: gs.Node, known: dict[int, Value], lengths: Lengths) -> int:
    """Another node that reads a length, such as the If of LongRoPE."""
    if node.op in COPIES:
        return 0
    changed = 0
    for index, tensor in enumerate(node.inputs):
        value = known.get(id(tensor))
        if not isinstance(value, Symbolic) or len(value.elements) != 1:
            continue
        new = lengths.greater(value.elements[0])
        if new is not None:
            node.inputs[index] = new
            changed += 1
    return changed


class Lengths:
    """The GPU word and what is computed from it, each made once."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.made: dict[str, gs.Variable] = {}
        written = [tensor for node in graph.nodes for tensor in node.outputs]
        word = next((port for port in graph.inputs if port.name == WORD), None)
        if word is not None and list(word.shape or ()) == [1] and np.dtype(word.dtype) == np.int32:
            self.made = {tensor.name: tensor for tensor in (word, *written)}  # an earlier pass made it
            return
        for tensor in written:
            if tensor.name in (WORD, SEQLENS_NAME):  # an exporter may have used our names
                tensor.name += "_original"

    def total(self) -> gs.Variable:
        if WORD not in self.made:
            for port in self.graph.inputs:
                if port.name == WORD:
                    port.name += "_original"
            word = gs.Variable(WORD, np.dtype(np.int32), [1])
            self.graph.inputs.append(word)
            self.made[WORD] = word
        return self.made[WORD]

    def seqlens(self) -> gs.Variable:
        one = gs.Constant("one_i32", np.array([1], np.int32))
        return self._node("Sub", SEQLENS_NAME, [self.total(), one], np.int32)

    def on_host(self) -> gs.Variable:
        return self._node(TO_HOST, f"{WORD}/{TO_HOST}", [self.total()], np.int32)

    def greater(self, element: Affine | Greater) -> gs.Variable | None:
        """total > threshold as a device value of shape [1]; None for anything else."""
        if not isinstance(element, Greater):
            return None
        name = f"{WORD}_over_{element.threshold}"
        threshold = gs.Constant(f"{name}/threshold", np.array([element.threshold], np.int32))
        return self._node("Greater", name, [self.total(), threshold], np.bool_)

    def _node(self, op: str, name: str, inputs: list[gs.Tensor], dtype: type) -> gs.Variable:
        if name not in self.made:
            self.made[name] = gs.Variable(name, np.dtype(dtype), [1])
            self.graph.nodes.insert(0, gs.Node(op, name, inputs=inputs, outputs=[self.made[name]]))
        return self.made[name]


def _drop_unused_inputs(graph: gs.Graph, config: ModelConfig) -> int:
    """The mask, and lengths that were graph inputs, go when nothing that matters reads them."""
    alive = _needed_inputs(graph)
    dropped = [
        port
        for port in graph.inputs
        if id(port) not in alive
        and not is_graph_output(graph, port)
        and (port.name in (config.mask_input, SEQLENS_NAME) or port.name.endswith("_original"))
    ]
    graph.inputs = [port for port in graph.inputs if all(port is not old for old in dropped)]
    return len(dropped)


def _needed_inputs(graph: gs.Graph) -> set[int]:
    """Ids of the tensors that some graph output depends on."""
    stack = list(graph.outputs)
    seen: set[int] = set()
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        stack.extend(source for node in tensor.inputs for source in node.inputs if source.name)
    return seen


def check_mask_is_gone(graph: gs.Graph, config: ModelConfig) -> int:
    """Refuse a graph that still reads the attention mask or position ids; changes nothing.

    Raises:
        CompileError: naming the first node that reads it.
    """
    if not nodes(graph, "GroupQueryAttention"):
        return 0
    for port in graph.inputs:
        if port.name in (config.mask_input, config.position_input) and readers(port):
            raise CompileError(
                label(readers(port)[0]),
                f"it reads {port.name} in a way that cannot be replaced by the sequence length on the GPU",
                "export the model without it, as onnxruntime-genai's model builder does",
            )
    return 0
