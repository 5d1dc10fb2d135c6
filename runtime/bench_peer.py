"""Another runtime on the same model and machine, in a process of its own that is asked over pipes.

A peer reads `{"model": ..., "capacity": ...}` and answers `{"name": ...}`. Then each request
`{"before": [...], "prompt": [...], "generate": n}` gets `{"seconds": ..., "tokens": [...]}`; `{"error": ...}`
ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .bench import Bench, Result, Trial
from .errors import RuntimeFailure

PEERS = {"onnxruntime-webgpu": "peer_onnxruntime.py"}
INSTALL = "pip install 'webgpu-compile[peer]'"
COMPARED = 16
"""Tokens that both generate from one prompt, to see that they do the same work."""


class Peer:
    """A running peer. Leaving the context ends its process."""

    def __init__(self, command: Sequence[str], model: Path, capacity: int, software: bool) -> None:
        """Raises RuntimeFailure: it cannot run the model."""
        variables = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"} if software else {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **variables},
        )
        try:
            self.name: str = self._ask({"model": str(model), "capacity": capacity})["name"]
        except BaseException:
            self.close()
            raise

    def seconds(self, before: Sequence[int], prompt: Sequence[int], generate: int) -> float:
        """The time to take `prompt`, or to generate `generate` tokens, behind `before`."""
        return float(self._ask({"before": [*before], "prompt": [*prompt], "generate": generate})["seconds"])

    def tokens(self, prompt: Sequence[int], n: int) -> list[int]:
        """The `n` most likely tokens after `prompt`."""
        return list(self._ask({"before": [*prompt], "prompt": [], "generate": n})["tokens"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise RuntimeFailure("the peer", f"ended without an answer (exit code {code})", f"try {INSTALL}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            hint = (
                INSTALL if "ModuleNotFound" in answer["error"] else "leave --peer away, or give another model"
            )
            raise RuntimeFailure("the peer", f"fails ({answer['error'].splitlines()[0][:300]})", hint)
        return answer


def start_peer(name: str, model: str, capacity: int, software: bool) -> Peer:
    """The peer called `name` on `model`, an ONNX file or a folder with model.onnx.

    Raises:
        RuntimeFailure: the model is not there, or the peer cannot run it.
    """
    path = Path(model)
    path = path / "model.onnx" if path.is_dir() else path
    if not path.is_file():
        raise RuntimeFailure(f"--model {model}", "is no ONNX file, nor a folder with model.onnx", "give one")
    script = Path(__file__).parent / PEERS[name]
    return Peer([sys.executable, str(script)], path.resolve(), capacity, software)


def side_by_side(
    bench: Bench, peer: Peer, tests: Sequence[Trial], repeats: int
) -> tuple[list[Result], list[Result]]:
    """Each test by both, turn by turn, and who begins changes: other work of the machine meets both alike."""
    results: tuple[list[Result], list[Result]] = [], []
    for test in tests:
        runs = bench.once, lambda test: _once(peer, bench, test)
        bench.warm_up()
        for run in runs:
            run(test)
        samples: tuple[list[float], list[float]] = [], []
        for i in range(repeats):
            for who in (0, 1) if i % 2 == 0 else (1, 0):
                samples[who].append(runs[who](test))
        for found, of in zip(results, samples, strict=True):
            found.append(Result(test, tuple(of)))
    return results


def agreement(bench: Bench, peer: Peer) -> int:
    """How many of the first `COMPARED` tokens after a prompt are the same."""
    prompt = bench.prompt(COMPARED)
    pairs = zip(bench.tokens(prompt, COMPARED), peer.tokens(prompt, COMPARED), strict=True)
    return int(np.cumprod([ours == theirs for ours, theirs in pairs]).sum())


def _once(peer: Peer, bench: Bench, test: Trial) -> float:
    before = bench.prompt(test.depth if test.n_prompt or test.depth else 1)
    prompt = bench.prompt(test.n_prompt)
    return (test.n_prompt or test.n_generated) / peer.seconds(before, prompt, test.n_generated)
