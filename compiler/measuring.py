"""Asks the runtime's measuring process (runtime/measure.py) how long kernels take on this machine's GPU.

The compiler neither imports the runtime nor a GPU library: it starts the process and speaks lines of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from .errors import CompileError
from .program import Grid

MODULE = f"{__package__.removesuffix('.compiler')}.runtime.measure"


@dataclass(frozen=True, slots=True)
class Slot:
    """A binding of a kernel to be timed: `cold` memory is in no cache, `words` are what it begins with."""

    access: str
    nbytes: int
    cold: bool = False
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A kernel to be timed. Equal samples take the same time."""

    wgsl: str
    grid: Grid
    bindings: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The GPU: vendor and features as WebGPU names them, `software` if a CPU plays it."""

    vendor: str
    device: str
    software: bool
    features: tuple[str, ...]


class Measurer(Protocol):
    """Times kernels. Tests have one that computes the times instead."""

    @property
    def adapter(self) -> AdapterFacts: ...

    def seconds(self, sample: Sample) -> float | None:
        """GPU time of one dispatch; None where the driver does not take the kernel."""


class MeasuringProcess:
    """The measurer of this machine. To be used in a `with` block.

    Raises:
        CompileError: there is no adapter, it cannot time kernels, or the process died.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        facts = self._answer()
        if "error" in facts:
            self.__exit__(None, None, None)
            subject, _, rest = facts["error"].removesuffix(".").partition(": ")
            problem, _, hint = rest.partition("; ")
            raise CompileError(f"--tune, {subject}", problem, hint)
        self.adapter = AdapterFacts(
            facts["vendor"], facts["device"], facts["software"], tuple(facts["features"])
        )

    def seconds(self, sample: Sample) -> float | None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(sample)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _died() from None
        return self._answer().get("seconds")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _died() -> CompileError:
    return CompileError(
        "--tune", "the process that measures has died", "update the GPU's driver, or compile without --tune"
    )
