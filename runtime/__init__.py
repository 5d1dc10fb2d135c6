"""The runtime: loads an artifact, checks it, replays it. It decides nothing that the compiler could have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asynchronous import in_thread
    from .errors import RuntimeFailure
    from .loading import load
    from .session import Session
    from .text_generator import TextGenerator

__all__ = ["RuntimeFailure", "Session", "TextGenerator", "in_thread", "load"]

_HOME = {
    "RuntimeFailure": "errors",
    "Session": "session",
    "TextGenerator": "text_generator",
    "in_thread": "asynchronous",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading the schema must not need a GPU library."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
