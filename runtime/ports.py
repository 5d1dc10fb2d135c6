"""The model's ports: NumPy arrays in and out, under ONNX's names, types and shapes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RuntimeFailure
from .schema import Port

Array = npt.NDArray[Any]

STORAGE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
}
STORAGE_NBYTES = {name: dtype.itemsize for name, dtype in STORAGE.items()}
"""Bytes of one element on the GPU."""

ONNX: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
}


def to_storage(port: Port, value: object) -> bytes:
    """The bytes to upload for `value` at an input port of concrete shape.

    As in ONNX Runtime the dtype must be the model's; a Python list takes it on.

    Raises:
        RuntimeFailure: dtype or shape differ, or an int64 does not fit the GPU's i32.
    """
    subject = f"input {port.name!r}"
    want = ONNX[port.dtype]
    array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=want)
    if array.dtype != want:
        raise RuntimeFailure(subject, f"is {array.dtype}, not {want}", f"convert it with .astype('{want}')")
    if list(array.shape) != port.shape:
        raise RuntimeFailure(
            subject,
            f"has shape {list(array.shape)}, not {port.shape}",
            "compiled shapes are fixed: give this one",
        )
    storage = STORAGE[port.storage]
    if want.kind == "i" and storage.itemsize < want.itemsize and array.size:
        info = np.iinfo(storage)
        if array.min() < info.min or array.max() > info.max:
            raise RuntimeFailure(subject, "has values beyond 32 bits", "the GPU computes int64 in 32 bits")
    data = np.ascontiguousarray(array, dtype=storage).tobytes()
    return data + bytes(port.nbytes - len(data))


def from_storage(port: Port, data: bytes | memoryview, shape: list[int] | None = None) -> Array:
    """The array that ONNX promises, from the bytes of an output port (`shape` replaces the port's)."""
    dims = shape if shape is not None else port.shape
    array = np.frombuffer(data, dtype=STORAGE[port.storage], count=prod(dims)).reshape(dims)
    want = ONNX[port.dtype]
    return array.astype(want) if array.dtype != want else array.copy()
