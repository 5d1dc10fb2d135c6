"""The tensors of a model file: checked before use, then turned into lazy constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from ..errors import CompileError
from .external import NBITS, ExternalValues, InlineValues, locate, tensor_nbytes

EXPORT_AGAIN = "export the model again"


@dataclass(slots=True)
class TensorLoader:
    """Makes lazy constants, and remembers which bytes are taken.

    Two tensors may be the same bytes (an exporter's alias, as for tied embeddings); any other overlap
    is damage.
    """

    model: Path
    missing_ok: bool
    ranges: dict[tuple[Path, int, int], str] = field(default_factory=dict)
    files: dict[Path, int | None] = field(default_factory=dict)

    def values(self, proto: onnx.TensorProto, fallback: str) -> ExternalValues | InlineValues:
        """The checked values of a tensor.

        Raises:
            CompileError: naming the tensor.
        """
        subject = f"tensor {proto.name or fallback}"
        if proto.data_type not in NBITS or proto.data_type == onnx.TensorProto.UNDEFINED:
            raise CompileError(subject, f"element type {proto.data_type} is not supported", EXPORT_AGAIN)
        nbytes = tensor_nbytes(subject, proto.data_type, tuple(proto.dims))
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(proto, subject, nbytes, proto.name or fallback)
        _check_inline(proto, subject, nbytes)
        return InlineValues(proto.name or fallback, proto)

    def _external(self, proto: onnx.TensorProto, subject: str, nbytes: int, name: str) -> ExternalValues:
        fields = {entry.key: entry.value for entry in proto.external_data}
        location = fields.get("location", "")
        offset, length = _count(fields.get("offset", "0")), _count(fields.get("length", str(nbytes)))
        if offset is None or length is None:
            raise CompileError(subject, "its external offset or length is not a number", EXPORT_AGAIN)
        if length != nbytes:
            problem = f"it has {length} bytes of external data, its shape {list(proto.dims)} needs {nbytes}"
            raise CompileError(subject, problem, EXPORT_AGAIN)
        file = locate(self.model, location, subject, self.missing_ok)
        if file not in self.files:
            self.files[file] = file.stat().st_size if file.exists() else None
        size = self.files[file]
        if size is not None and offset + length > size:
            raise CompileError(
                subject,
                f"its data end at byte {offset + length}, but {location} has only {size}",
                "the file is cut short, copy or export it again",
            )
        key = self.ranges.setdefault((file, offset, length), name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        return ExternalValues(key, file, location, offset, length, dtype, tuple(proto.dims))

    def check_overlaps(self) -> None:
        """Refuse ranges that overlap without being the same.

        Raises:
            CompileError: naming both tensors.
        """
        last: tuple[Path, int, str] | None = None
        for (file, offset, length), name in sorted(self.ranges.items()):
            if length and last and last[0] == file and offset < last[1]:
                problem = f"its external data overlap those of {last[2]}"
                raise CompileError(f"tensor {name}", problem, EXPORT_AGAIN)
            if length:
                last = (file, offset + length, name)


def adopt(graph: gs.Graph, loader: TensorLoader) -> None:
    """Give every constant of a graph, its subgraphs and its attributes checked lazy values."""
    seen: set[int] = set()
    for constant in _constants(graph):
        if id(constant) in seen:
            continue
        seen.add(id(constant))
        proto = getattr(constant._values, "tensor", None)
        if not isinstance(proto, onnx.TensorProto):
            problem = "sparse initializers are not supported"
            raise CompileError(f"tensor {constant.name}", problem, "export it as a dense tensor")
        constant.values = loader.values(proto, constant.name)
        constant.data_location = None
    loader.check_overlaps()


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    for node in graph.nodes:
        yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
        for key, value in node.attrs.items():
            if isinstance(value, gs.Constant):
                if not value.name:
                    value.name = next((t.name for t in node.outputs), "") or f"{node.name}.{key}"
                yield value
            elif isinstance(value, gs.Graph):
                yield from _constants(value)
    yield from (tensor for tensor in graph.outputs if isinstance(tensor, gs.Constant))


def _check_inline(proto: onnx.TensorProto, subject: str, nbytes: int) -> None:
    if proto.data_type == onnx.TensorProto.STRING:
        raise CompileError(subject, "it holds text, which cannot go to the GPU", EXPORT_AGAIN)
    if proto.HasField("raw_data"):
        found = len(proto.raw_data)
    else:
        bits = NBITS[proto.data_type]
        counts = {
            "float_data": len(proto.float_data),
            "int32_data": len(proto.int32_data),
            "int64_data": len(proto.int64_data),
            "double_data": len(proto.double_data),
            "uint64_data": len(proto.uint64_data),
        }
        stored = counts.get(onnx.helper.tensor_dtype_to_field(proto.data_type), 0)
        found = stored if bits < 8 else stored * bits // 8
    if found != nbytes:
        problem = f"it holds {found} bytes, its shape {list(proto.dims)} needs {nbytes}"
        raise CompileError(subject, problem, EXPORT_AGAIN)


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
