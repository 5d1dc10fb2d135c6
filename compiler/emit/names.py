"""A model's names as an artifact may hold them: any text, but bounded, and none that a format reserves."""

from __future__ import annotations

import hashlib
from typing import Any

MAX_NAME = 1024
"""Characters of a name in the manifest (`Name` of runtime/schema.py)."""

_RESERVED = ("__metadata__", ".padding.")  # of safetensors, and of our shards


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
