"""Weights where they lie: constants that know their file, offset and shape, and are read on demand.

Nothing here copies a model into memory. `ExternalValues.load()` maps the file; until then a constant costs
a few hundred bytes. The locations in a model are untrusted input (see `locate`).
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from ..errors import CompileError

NBITS: dict[int, int] = {
    **dict.fromkeys((onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((onnx.TensorProto.COMPLEX64, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64), 64),
    **dict.fromkeys((onnx.TensorProto.UINT64,), 64),
    **dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.UINT32), 32),
    **dict.fromkeys((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16), 16),
    **dict.fromkeys((onnx.TensorProto.INT16, onnx.TensorProto.UINT16), 16),
    **dict.fromkeys((onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.BOOL), 8),
    onnx.TensorProto.COMPLEX128: 128,
}
MAX_TENSOR_NBYTES = 1 << 38


def tensor_nbytes(subject: str, data_type: int, dims: tuple[int, ...]) -> int:
    """Bytes of a tensor, checked before anyone allocates them.

    Raises:
        CompileError: for a negative dimension, an unknown element type, or more than 256 GiB.
    """
    bits = NBITS.get(data_type, 8)
    if any(dim < 0 for dim in dims):
        raise CompileError(subject, f"a dimension of {list(dims)} is negative", "export the model again")
    nbytes = (prod(dims) * bits + 7) // 8
    if nbytes > MAX_TENSOR_NBYTES:
        raise CompileError(
            subject,
            f"its shape {list(dims)} needs {nbytes / 2**40:.3g} TiB",
            "check the file, it looks damaged",
        )
    return int(nbytes)


class ExternalValues(LazyValues):  # type: ignore[misc]
    """Values that lie in a file beside the model, C-contiguous and little-endian.

    `key` names the bytes: it is the name of the first initializer of the model that lies there. Aliases
    under another shape keep it, and `source_shape` is that initializer's shape.
    """

    def __init__(
        self,
        key: str,
        file: Path,
        location: str,
        offset: int,
        nbytes: int,
        dtype: np.dtype,
        shape: tuple[int, ...],
        source_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.key = key
        self.file = file
        self.location = location
        self.offset = offset
        self.nbytes = nbytes
        self.dtype = dtype
        self.shape = list(shape)
        self.source_shape = source_shape or tuple(shape)

    def load(self) -> np.ndarray:
        """A read-only view of the file; pages are read when they are touched.

        Raises:
            FileNotFoundError: when the file is missing, which only `--check` lets through import.
        """
        if self.nbytes == 0:
            return np.empty(self.shape, self.dtype)
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
        return raw.view(self.dtype).reshape(self.shape)

    def rows(self, start: int, stop: int) -> ExternalValues:
        """Rows [start, stop) of the first axis, still in the file."""
        row = self.nbytes // self.shape[0]
        return ExternalValues(
            f"{self.key}[{start}:{stop}]",
            self.file,
            self.location,
            self.offset + start * row,
            (stop - start) * row,
            self.dtype,
            (stop - start, *self.shape[1:]),
        )

    def reshaped(self, shape: tuple[int, ...]) -> ExternalValues:
        """The same bytes under another shape."""
        place = (self.key, self.file, self.location, self.offset, self.nbytes)
        return ExternalValues(*place, self.dtype, shape, self.source_shape)

    @property
    def tensor(self) -> onnx.TensorProto:
        """The tensor as an ONNX file refers to it; `location` is relative to that file."""
        proto = onnx.TensorProto(data_type=onnx.helper.np_dtype_to_tensor_dtype(self.dtype), dims=self.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        fields = {"location": self.location, "offset": str(self.offset), "length": str(self.nbytes)}
        for key, value in fields.items():
            proto.external_data.add(key=key, value=value)
        return proto


class InlineValues(LazyValues):  # type: ignore[misc]
    """Values that lie in the model file itself, decoded on demand."""

    def __init__(self, key: str, proto: onnx.TensorProto, shape: tuple[int, ...] | None = None) -> None:
        self.key = key
        self.proto = proto
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        self.source_shape = tuple(proto.dims)
        self.shape = list(self.source_shape if shape is None else shape)
        self.nbytes = prod(self.shape) * self.dtype.itemsize

    def load(self) -> np.ndarray:
        return np.asarray(onnx.numpy_helper.to_array(self.proto)).reshape(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> InlineValues:
        """The same bytes under another shape."""
        return InlineValues(self.key, self.proto, shape)

    @property
    def tensor(self) -> onnx.TensorProto:
        copy = onnx.TensorProto()
        copy.CopyFrom(self.proto)
        copy.dims[:] = self.shape
        return copy


class PaddedValues(LazyValues):  # type: ignore[misc]
    """`source` with rows of zeros appended, so that two tables of different length can meet in one Where."""

    def __init__(self, source: LazyValues, rows: int) -> None:
        self.source = source
        self.key = f"{source.key}/padded"
        self.dtype = source.dtype
        self.shape = [rows, *source.shape[1:]]
        self.source_shape = tuple(self.shape)
        self.nbytes = prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def n_rows(self) -> int:
        """Rows that hold values; the others are never read."""
        return int(self.source.shape[0])

    def load(self) -> np.ndarray:
        padded = np.zeros(self.shape, self.dtype)
        padded[: self.n_rows] = self.source.load()
        return padded

    @property
    def tensor(self) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(self.load())


StorageKey = str


def storage_key(constant: gs.Constant) -> StorageKey:
    """The name of a constant's bytes: aliases of one initializer share it, whatever their shapes."""
    return str(getattr(constant._values, "key", constant.name))


def same_bytes(a: gs.Constant, b: gs.Constant) -> bool:
    """Whether two constants are one run of bytes, as the tied embedding and the LM head are."""
    return storage_key(a) == storage_key(b)


def read(constant: gs.Constant) -> np.ndarray:
    """The values of a constant of any size, without keeping them on the graph."""
    values = constant._values
    return values if isinstance(values, np.ndarray) else np.asarray(values.load())


def alias(constant: gs.Constant, name: str, shape: tuple[int, ...]) -> gs.Constant:
    """A second constant over the same bytes, with another shape."""
    values = constant._values
    if isinstance(values, np.ndarray):
        return gs.Constant(name, values.reshape(shape))
    return gs.Constant(name, values.reshaped(shape))


def locate(model: Path, location: str, subject: str, missing_ok: bool) -> Path:
    """The file that an external-data location means.

    It must be a regular file inside the model's folder after following links. A model that is itself a
    link (as in Hugging Face's cache, where every file points into `blobs/`) may have its data where
    the link points to.

    Raises:
        CompileError: naming the tensor.
    """
    parts = location.replace("\\", "/").split("/")
    hint = "move the data into the model's folder and export again"
    if not location or "\0" in location:
        raise CompileError(subject, "its external data has no usable file name", "export the model again")
    if location.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts:
        raise CompileError(subject, f"its external data {location!r} is outside the model's folder", hint)
    path = model.parent / location
    real = Path(os.path.realpath(path))
    homes = (Path(os.path.realpath(model.parent)), Path(os.path.realpath(model)).parent)
    if not any(real.is_relative_to(home) for home in homes):
        raise CompileError(subject, f"its external data {location!r} links out of the model's folder", hint)
    if not real.is_file():
        if missing_ok and not real.exists():
            return real
        raise CompileError(
            subject, f"its external data file {location!r} is missing", f"put it beside {model.name}"
        )
    return real
