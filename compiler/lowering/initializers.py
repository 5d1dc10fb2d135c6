"""The model's initializers by name, each run of bytes once, whatever the graph calls it.

A tied embedding is a second constant over the bytes of the LM head; both have one name here, so lowering
makes one weight of them.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..importer.external import StorageKey, storage_key


class Initializers:
    """Shared by all programs of a compilation, so that they share their weights."""

    def __init__(self) -> None:
        self._names: dict[StorageKey, str] = {}
        self._constants: dict[str, gs.Constant] = {}

    def name_of(self, constant: gs.Constant) -> str:
        """The name of the bytes of `constant`: that of the first constant seen over them."""
        key = storage_key(constant)
        if key not in self._names:
            name = str(constant.name)
            while name in self._constants:
                name += "'"
            self._names[key] = name
            self._constants[name] = constant
        return self._names[key]

    def array(self, name: str) -> np.ndarray:
        """The values; a view of the model's file where they lie in one."""
        values = self._constants[name]._values
        return values if isinstance(values, np.ndarray) else values.load()
