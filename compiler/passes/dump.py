"""Writing a graph between passes as an ONNX model that ONNX Runtime can run.

Weights stay in the model's own data file. ONNX Runtime refuses external data outside the model's folder
and behind symbolic links, so the file is hard-linked beside the dump; where that is impossible (another
file system), a small file is copied and a large one linked symbolically, for viewers.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..importer.external import ExternalValues
from .function_bodies import OVERLOADED
from .functions import DOMAIN, SOURCES, function_proto, is_call, overload
from .runner import PassRecord

MAX_COPY_NBYTES = 256 << 20
MIN_IR = 10  # function overloads


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as a model, with the functions that its calls mean. External data keep their locations."""
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    for node in graph.nodes:
        if is_call(node):
            key = (node.op, overload(node))
            functions.setdefault(key, function_proto(*key, graph.opset))
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in OVERLOADED:
            attribute = OVERLOADED[node.op_type]
            node.overload = next(a.s.decode() for a in node.attribute if a.name == attribute)
        if node.domain != DOMAIN:  # ONNX Runtime refuses attributes that an operator does not have
            kept = [attribute for attribute in node.attribute if attribute.name != SOURCES]
            del node.attribute[:]
            node.attribute.extend(kept)
    model.functions.extend(functions[key] for key in sorted(functions))
    domains = {entry.domain for entry in model.opset_import}
    if functions and "com.microsoft" not in domains:
        model.opset_import.add(domain="com.microsoft", version=1)
    model.ir_version = max(graph.ir_version or MIN_IR, MIN_IR)
    return model


def export(graph: gs.Graph, path: Path) -> None:
    """Write the graph to `path`, its external data beside it.

    Raises:
        CompileError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = _place_data(graph, path.parent)
        model = to_model(graph)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = names.get((tensor.name), entry.value)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise CompileError(
            f"--dump {path.parent}", f"cannot be written ({error.strerror})", "give another folder"
        ) from error


class Dumper:
    """Writes a numbered file after every pass that changed the graph; `prefix` comes before the number."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix
        self.count = 0

    def stage(self, name: str, graph: gs.Graph) -> None:
        export(graph, self.folder / f"{self.prefix}{self.count:02}-{name}.onnx")
        self.count += 1

    def __call__(self, record: PassRecord, graph: gs.Graph) -> None:
        self.stage(record.name, graph)


def _place_data(graph: gs.Graph, folder: Path) -> dict[str, str]:
    """Put the data files beside the dump; returns the location by tensor name."""
    files: dict[Path, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.tensors().values():
        values = getattr(tensor, "_values", None)
        if not isinstance(values, ExternalValues):
            continue
        if values.file not in files:
            taken = set(files.values())
            base = Path(values.location).name
            files[values.file] = base if base not in taken else f"{len(taken)}-{base}"
            _link(values.file, folder / files[values.file])
        names[tensor.name] = files[values.file]
    return names


def _link(source: Path, target: Path) -> None:
    if not source.exists():  # --check without the data
        return
    if target.exists() or target.is_symlink():
        if target.exists() and os.path.samefile(source, target):
            return
        if target.exists() and target.stat().st_size == source.stat().st_size and not target.is_symlink():
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
            raise
        if source.stat().st_size <= MAX_COPY_NBYTES:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source)
