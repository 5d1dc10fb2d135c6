"""A model's names as an artifact may hold them: any text, but bounded, and none that a format reserves."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

MAX_NAME = 1024
"""Characters of a name in the manifest (`Name` of runtime/schema.py)."""

_RESERVED = ("__metadata__", ".padding.")  # of safetensors, and of our shards


_FORMAT = re.compile(
    r"((u?int|b?fp?|q)\d.*|(cpu|cuda|directml|gpu|webgpu|mobile|onnx)([-_].*)?)", re.IGNORECASE
)
"""A folder called by its format: of `llama/onnx` or `phi/cpu-int4-rtn` the name is in front."""


def model_name(file: Path) -> str:
    """What to call a model: its file, or if that is model.onnx, its folder."""
    if file.stem != "model":
        return file.stem
    folder = file.resolve().parent
    if _FORMAT.fullmatch(folder.name) and folder.parent.name:
        return f"{folder.parent.name}/{folder.name}"
    return folder.name or file.stem


def bounded(name: str) -> str:
    """The name itself; of a longer one the beginning and a hash of the whole."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 40]}… {_digest(name)}"


def weight_name(name: str) -> str:
    """The name of a packed tensor in its shard and in the manifest."""
    return f"weight {_digest(name)} {name[:64]}" if name.startswith(_RESERVED) else bounded(name)


def bounded_names(document: Any) -> Any:
    """`bounded` for every text in a JSON document; keys are ours."""
    if isinstance(document, str):
        return bounded(document)
    if isinstance(document, list):
        return [bounded_names(entry) for entry in document]
    if isinstance(document, dict):
        return {key: bounded_names(value) for key, value in document.items()}
    return document


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]
