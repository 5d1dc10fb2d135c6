"""webgpu-compile: from ONNX to standalone WebGPU programs.

>>> import webgpu_compile
>>> webgpu_compile.compile("model.onnx", "out/", max_length=2048)      # doctest: +SKIP
>>> session = webgpu_compile.load("out/")                              # doctest: +SKIP
>>> for token in session.generate([1, 2, 3], max_new_tokens=32): ...   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import CompileError, compile
    from .runtime import RuntimeFailure, Session, TextGenerator, in_thread, load

__all__ = ["CompileError", "RuntimeFailure", "Session", "TextGenerator", "compile", "in_thread", "load"]

_HOME = {
    "compile": "compiler",
    "CompileError": "compiler",
    "TextGenerator": "runtime",
    "in_thread": "runtime",
    "load": "runtime",
    "Session": "runtime",
    "RuntimeFailure": "runtime",
}


def __getattr__(name: str) -> Any:
    """Import on first use: loading an artifact must not need onnx, jinja2 or networkx."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
