"""Cases for passes: ONNX text before, ONNX text after, and both run in ONNX Runtime.

A case is a file in cases/:

    # what it shows
    pass: fuse_matmul_bias            (several names run in order)
    config: vocab_size=8              (optional fields of ModelConfig)
    tolerance: 1e-5                   (optional; without it both answers must be equal)
    <model in ONNX text>
    =>
    <graph in ONNX text, or the word unchanged>

A value that no node writes and that is declared in the graph's < > is an initializer with random values,
seeded by its name; so weights take one line. `WEBGPU_COMPILE_BLESS=1 pytest tests/passes` rewrites the
expected graphs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_graphsurgeon as gs
import onnxruntime as ort
from webgpu_compile.compiler.importer import ModelConfig, load_model
from webgpu_compile.compiler.options import CompileOptions
from webgpu_compile.compiler.passes import (
    argmax,
    embedding,
    fuse_attention,
    fuse_bias,
    fuse_gated_mlp,
    fuse_quantize,
    fuse_residual_norm,
    int64,
    placement,
    precision,
    prune,
    quantize,
    rotary_cache,
    sequence_length,
    simplify,
    symbolic,
)
from webgpu_compile.compiler.passes.dump import to_model
from webgpu_compile.compiler.passes.front import prepare
from webgpu_compile.compiler.passes.runner import Group, Runner

MODULES = (
    argmax,
    embedding,
    fuse_attention,
    fuse_bias,
    fuse_gated_mlp,
    fuse_quantize,
    fuse_residual_norm,
    int64,
    placement,
    precision,
    prune,
    quantize,
    rotary_cache,
    sequence_length,
    simplify,
    symbolic,
)
WITH_CONFIG = (
    "fold_shapes",
    "narrow_int64",
    "sequence_length_to_gpu",
    "sequence_length_on_host",
    "split_rotary_cache",
    "check_mask_is_gone",
)
ARGUMENTS = {
    "append_argmax": {"logits": "logits"},
    "quantize_activations": {"activations": "auto"},
    "select_last_token": {"logits": "logits"},
}
HEAD = '<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>\n'
SIZES = {"batch_size": 1, "sequence_length": 3, "past_sequence_length": 4, "total_sequence_length": 7}


def find_pass(name: str, config: ModelConfig) -> Callable[[gs.Graph], int]:
    """A pass by name, with its config or other arguments where it takes some."""
    rule = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    if name in WITH_CONFIG:
        return partial(rule, config=config)
    return partial(rule, **ARGUMENTS[name]) if name in ARGUMENTS else rule


@dataclass(frozen=True, slots=True)
class Case:
    """A parsed case file."""

    passes: tuple[str, ...]
    config: ModelConfig
    tolerance: float
    before: str
    after: str


def read_case(path: Path) -> Case:
    text = path.read_text("utf-8")
    head, _, after = text.partition("\n=>\n")
    fields, lines = {}, []
    for line in head.splitlines():
        key, colon, value = line.partition(": ")
        if colon and key in ("pass", "config", "tolerance"):
            fields[key] = value
        elif not line.startswith("#"):
            lines.append(line)
    config = dict(pair.split("=") for pair in fields.get("config", "").split())
    return Case(
        tuple(fields["pass"].split()),
        ModelConfig(**{key: int(value) for key, value in config.items()}),
        float(fields.get("tolerance", 0)),
        "\n".join(lines).strip(),
        after.strip(),
    )


def parse(text: str) -> onnx.ModelProto:
    """ONNX text (a graph, or a model) to a model whose undeclared values are random initializers."""
    model = onnx.parser.parse_model(text if text.startswith("<") else HEAD + text)
    written = {name for node in model.graph.node for name in node.output}
    written |= {tensor.name for tensor in model.graph.initializer}
    for info in model.graph.value_info:
        if info.name not in written:
            model.graph.initializer.append(random_tensor(info))
    return model


def random_tensor(info: onnx.ValueInfoProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(random_array(info, {}), info.name)


def random_array(info: onnx.ValueInfoProto, sizes: dict[str, int]) -> np.ndarray:
    kind = info.type.tensor_type
    shape = [sizes.get(dim.dim_param, 5) if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
    rng = np.random.default_rng(zlib.crc32(info.name.encode()))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.integers(0, 2 if dtype.kind == "b" else 4, shape).astype(dtype)


def feed(model: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs by name: the same name gets the same values before and after a pass."""
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if info.name in constants:
            continue
        if info.name == "attention_mask":
            feeds[info.name] = np.ones((1, sizes["total_sequence_length"]), dtype)
        elif info.name == "total_sequence_length":
            rank = len(info.type.tensor_type.shape.dim)
            feeds[info.name] = np.full((1,) * rank, sizes["total_sequence_length"], dtype)
        elif info.name == "seqlens_k":
            feeds[info.name] = np.full((1,), sizes["total_sequence_length"] - 1, dtype)
        else:
            feeds[info.name] = random_array(info, sizes)
    return feeds


def run_in_ort(model: onnx.ModelProto, sizes: dict[str, int] | None = None) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed(model, sizes or SIZES)))


def load_text(text: str, folder: Path) -> gs.Graph:
    """ONNX text through the importer, as far as passes may count on it."""
    path = folder / "case.onnx"
    onnx.save(parse(text), path)
    graph = load_model(path, CompileOptions()).graph
    prepare(graph)
    return graph


def apply(case: Case, graph: gs.Graph) -> int:
    runner = Runner()
    return sum(runner.run(graph, Group(name, (find_pass(name, case.config),))) for name in case.passes)


def graph_text(graph: gs.Graph) -> str:
    """The graph as ONNX text; of initializers with more than 8 elements only name, type and shape."""
    model = to_model(graph)
    inner = {info.name for info in model.graph.value_info}
    del model.graph.value_info[:]
    small = []
    for tensor in model.graph.initializer:
        if np.prod(list(tensor.dims), dtype=np.int64) <= 8:
            small.append(tensor)
        elif tensor.name not in inner:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.value_info.append(info)
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    return "\n".join(line.rstrip() for line in onnx.printer.to_text(model.graph).strip().splitlines())
