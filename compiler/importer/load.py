"""From a path to a graph: find the files, refuse what is not a model, never read a weight."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from ..errors import CompileError
from ..graph import tidy
from ..options import CompileOptions
from .config import ModelConfig, model_filename, read_config
from .dims import bind_dims
from .structure import check_structure
from .tensors import TensorLoader, adopt

MIN_OPSET, MAX_OPSET = 7, 25
"""From 7 on Add and its like broadcast as NumPy does; before, they meant something else."""
MAX_IR = 13
OWN_DOMAIN = "webgpu_compile"

log = logging.getLogger(__name__)
G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # what matters becomes a CompileError


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output as the model's author declared it; a dimension is a size or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model as it was found, with dimensions bound; the graph's constants are lazy."""

    graph: gs.Graph
    config: ModelConfig
    file: Path
    folder: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    data_files: tuple[Path, ...]


def load_model(path: Path, options: CompileOptions) -> ImportedModel:
    """Import a .onnx file, or the model of a folder.

    Raises:
        CompileError: the file is missing, is not ONNX, is newer than this compiler, or is damaged.
    """
    file = find_model(path)
    config = read_config(file.parent)
    proto = read_proto(file)
    check_versions(proto, file.name)
    check_structure(proto.graph)
    proto = inline_functions(proto, file.name)
    loader = TensorLoader(file, missing_ok=options.check)
    try:
        graph = gs.import_onnx(proto)
    except CompileError:
        raise
    except Exception as error:  # graphsurgeon trusts its input: whatever it trips over is the file's fault
        raise not_onnx(file.name, f"cannot be imported ({error})") from error
    adopt(graph, loader)
    ports = tuple(map(_ports, (proto.graph.input, proto.graph.output)))
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(port for port in ports[0] if port.name not in constants)
    bind_dims(graph, config, options.dims)
    tidy(graph)
    name_nodes(graph)
    return ImportedModel(graph, config, file, file.parent, inputs, ports[1], tuple(sorted(loader.files)))


def name_nodes(graph: gs.Graph) -> None:
    """Every node gets a name of its own: errors, comments and scratch buffers are called by it."""
    taken: set[str] = set()
    for node in graph.nodes:
        name = wanted = node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op)
        count = 1
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        node.name = name
        taken.add(name)


def find_model(path: Path) -> Path:
    """The .onnx file that `path` means.

    Raises:
        CompileError: there is none, or more than one and nothing says which.
    """
    if "\0" in str(path) or not path.exists():
        raise CompileError(str(path), "there is no such file or folder", "check the path")
    if not path.is_dir():
        return path
    named = model_filename(path)
    if named is not None:
        file = path / named
        if not file.resolve().is_relative_to(path.resolve()) and not file.is_symlink():
            problem = f"genai_config.json names {named!r}, which is outside the folder"
            raise CompileError(str(path), problem, "correct model.decoder.filename")
        if not file.is_file():
            problem = f"genai_config.json names {named!r}, which is missing"
            raise CompileError(str(path), problem, "copy the whole model folder")
        return file
    found = sorted(path.glob("*.onnx"))
    if not found:
        raise CompileError(str(path), "the folder has no .onnx file", "give the folder that holds the model")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise CompileError(str(path), f"the folder has several models ({names})", "name the file to compile")
    return found[0]


def not_onnx(name: str, problem: str) -> CompileError:
    return CompileError(name, problem, "give a .onnx file, complete and as it was exported")


def read_proto(file: Path) -> onnx.ModelProto:
    """Parse a file as an ONNX model, without its external data.

    Raises:
        CompileError: unreadable, over 2 GiB (protobuf's limit), or not an ONNX model.
    """
    try:
        if os.path.getsize(file) >= 1 << 31:
            problem = "is over 2 GiB, more than an ONNX file can hold"
            raise CompileError(file.name, problem, "save the model with external data")
        proto: onnx.ModelProto = onnx.ModelProto.FromString(file.read_bytes())
    except OSError as error:
        raise CompileError(file.name, f"cannot be read ({error.strerror})", "check the file") from error
    except CompileError:
        raise
    except Exception as error:  # DecodeError lives in google.protobuf, whose module moves between versions
        raise not_onnx(file.name, "is not an ONNX model, or is cut short") from error
    if not proto.HasField("graph") or proto.ir_version <= 0 or not proto.graph.output:
        raise not_onnx(file.name, "is not an ONNX model")
    return proto


def check_versions(proto: onnx.ModelProto, name: str) -> None:
    """Refuse formats and operator sets other than the ones this compiler was written against."""
    if proto.ir_version > MAX_IR:
        problem = f"has IR version {proto.ir_version}, newer than {MAX_IR}"
        raise CompileError(name, problem, "export it with an older onnx, or update webgpu-compile")
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if version > MAX_OPSET:
        problem = f"uses opset {version}, newer than {MAX_OPSET}"
        raise CompileError(
            name, problem, f"export it with opset {MAX_OPSET} or lower, or update webgpu-compile"
        )
    if version < 1:
        raise not_onnx(name, "does not say which opset it uses")
    if version < MIN_OPSET:
        problem = f"uses opset {version}, older than {MIN_OPSET}"
        raise CompileError(name, problem, "convert it with onnx.version_converter")


def inline_functions(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Model-local functions become nodes; our own outlined ones (of a dump) stay calls."""
    foreign = [(f.domain, f.name) for f in proto.functions if f.domain != OWN_DOMAIN]
    if foreign:
        try:
            proto = onnx.inliner.inline_selected_functions(proto, foreign)
        except Exception as error:  # the inliner raises RuntimeError and friends for recursive functions
            raise not_onnx(name, f"has functions that cannot be inlined ({error})") from error
    del proto.functions[:]
    return proto


def _ports(values: list[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    ports = []
    for value in values:
        kind = value.type.tensor_type
        dims = enumerate(kind.shape.dim)
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_dim{axis}"
            for axis, dim in dims
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "unknown"
        ports.append(Port(value.name, dtype, shape))
    return tuple(ports)
