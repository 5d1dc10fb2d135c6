"""Shared by all tests: where software Vulkan keeps its files, `--bless`, models and artifacts made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(__file__).resolve().parents[1] / ".cache"
BLESS_VARIABLE = "WEBGPU_COMPILE_BLESS"


def _default_folder(variable: str, path: Path) -> None:
    """Mesa compiles a kernel for 30-300 ms at its first dispatch, unless it finds it in its cache."""
    if not os.environ.get(variable):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        os.environ[variable] = str(path)


_default_folder("XDG_RUNTIME_DIR", CACHE / "xdg")
_default_folder("MESA_SHADER_CACHE_DIR", CACHE / "mesa")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite golden files from what is made now")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell ignores Ctrl-C in what it runs in the background, and so would the programs under test.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--bless"):
        os.environ[BLESS_VARIABLE] = "1"  # pass cases, and the processes of -n, look here


@pytest.fixture(scope="session")
def bless() -> bool:
    """Whether golden files are to be rewritten."""
    return bool(os.environ.get(BLESS_VARIABLE))


class Artifacts:
    """Models of our own recipe and what they compile to, made once per (config, options) and process.

    Without `variants` those for GPUs: on a machine without one, `software` would be what every test sees.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[Any, Path] = {}
        self._compiled: dict[Any, tuple[Path, Any]] = {}

    def model(self, config: Any, *, weights: bool = True) -> Path:
        """The model.onnx of a `DecoderConfig`, with seed 0."""
        from webgpu_compile.models import write_decoder

        key = (config, weights)
        if key not in self._models:
            folder = self._folder / f"model-{len(self._models)}"
            self._models[key] = write_decoder(folder, config, weights=weights)
        return self._models[key]

    def compile(self, model: Any, **options: Any) -> Path:
        """The artifact of a `DecoderConfig` or a model file."""
        return self._made(model, options)[0]

    def result(self, model: Any, **options: Any) -> Any:
        """What the compiler says about it (`pipeline.Result`)."""
        return self._made(model, options)[1]

    def _made(self, model: Any, options: Mapping[str, Any]) -> tuple[Path, Any]:
        import webgpu_compile

        options = {"variants": ("f16-subgroups", "portable"), **options}
        key = (model, tuple(sorted(options.items())))
        if key not in self._compiled:
            path = model if isinstance(model, Path) else self.model(model)
            out = self._folder / f"out-{len(self._compiled)}"
            self._compiled[key] = out, webgpu_compile.compile(path, out, **options)
        return self._compiled[key]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("artifacts"))
