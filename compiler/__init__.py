"""The compiler: ONNX in, a folder of WGSL, schedule and weights out. `pipeline.py` is it on one page."""

from .errors import CompileError

__version__ = "0.1.0"

__all__ = ["CompileError", "__version__", "compile"]


def __getattr__(name: str) -> object:
    if name == "compile":
        from .pipeline import compile

        return compile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
