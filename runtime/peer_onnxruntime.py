"""ONNX Runtime's WebGPU provider on a decoder, timed on request: `webgpu-bench --peer` runs this file.

A process of its own: what it imports and how it ends concerns nobody else. `bench_peer.py` says what they
tell each other. Nothing of webgpu_compile is imported here.

The caches stay on the GPU and are appended to in place, a step's inputs and outputs are bound, and only the
logits come back; the arg-max is NumPy's. Graph capture is used where the model allows it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Decoder:
    """A model on the WebGPU provider, with caches of `capacity` positions."""

    def __init__(self, ort: Any, library: Any, model: Path, capacity: int) -> None:
        self._ort = ort
        self._capacity = capacity
        ort.set_default_logger_severity(3)
        ort.register_execution_provider_library("webgpu", library.get_library_path())
        devices = [d for d in ort.get_ep_devices() if d.ep_name == library.get_ep_name()]
        if not devices:
            raise RuntimeError("the WebGPU provider finds no adapter that it takes")
        self.captures, self._session = self._open(devices[:1], model)
        self._types = {port.name: TYPES[port.type] for port in self._session.get_inputs()}
        self._logits = next(port for port in self._session.get_outputs() if port.name == "logits")
        self._caches = {
            port.name: self._zeros(self._cache_shape(port, model), self._types[port.name])
            for port in self._session.get_inputs()
            if port.name.startswith("past_key_values.")
        }
        self._bound: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}
        self._past = 0

    def _open(self, devices: Sequence[Any], model: Path) -> tuple[bool, Any]:
        for captures in (True, False):
            options = self._ort.SessionOptions()
            options.log_severity_level = 3
            options.enable_mem_pattern = not captures
            chosen = {"enableGraphCapture": "1"} if captures else {}
            options.add_provider_for_devices(list(devices), {"validationMode": "basic", **chosen})
            try:
                return captures, self._ort.InferenceSession(str(model), sess_options=options)
            except Exception as error:  # of no particular class
                if not captures or "graph capture" not in str(error):
                    raise
        raise AssertionError

    def _cache_shape(self, port: Any, model: Path) -> list[int]:
        _, heads, _, head_size = port.shape
        if not isinstance(heads, int) or not isinstance(head_size, int):
            config = json.loads((model.parent / "genai_config.json").read_bytes())["model"]["decoder"]
            heads, head_size = config["num_key_value_heads"], config["head_size"]
        return [1, heads, self._capacity, head_size]

    def _zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        value = self._session.create_ortvalue_from_shape_and_type(list(shape), dtype, "webgpu")
        value.update_inplace(np.zeros(shape, dtype))
        return value

    def _binding(self, rows: int, mask: int) -> tuple[Any, dict[str, Any]]:
        if (rows, mask) not in self._bound:
            binding = self._session.io_binding()
            shapes = {"input_ids": [1, rows], "attention_mask": [1, mask], "position_ids": [1, rows]}
            bound = {n: self._zeros(s, self._types[n]) for n, s in shapes.items() if n in self._types}
            for name, value in {**bound, **self._caches}.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in self._caches.items():
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            _, given, vocab_size = self._logits.shape
            shape = [1, given if isinstance(given, int) else rows, vocab_size]
            bound["logits"] = self._zeros(shape, TYPES[self._logits.type])
            binding.bind_ortvalue_output("logits", bound["logits"])
            if not self.captures and len(self._bound) > 8:
                self._bound.pop(next(iter(self._bound)))  # the mask grows: no binding is used again
            self._bound[rows, mask] = binding, bound
        return self._bound[rows, mask]

    def reset(self) -> None:
        self._past = 0

    def step(self, ids: Sequence[int]) -> int:
        """Append `ids`; the most likely token after them."""
        rows, total = len(ids), self._past + len(ids)
        binding, bound = self._binding(rows, self._capacity if self.captures else total)
        bound["input_ids"].update_inplace(np.array([ids], self._types["input_ids"]))
        mask = np.zeros(bound["attention_mask"].shape(), self._types["attention_mask"])
        mask[:, :total] = 1
        bound["attention_mask"].update_inplace(mask)
        if "position_ids" in bound:
            positions = np.arange(self._past, total)[None]
            bound["position_ids"].update_inplace(positions.astype(self._types["position_ids"]))
        options = self._ort.RunOptions()
        if self.captures:
            options.add_run_config_entry("gpu_graph_id", "1" if rows == 1 else "-1")
        self._session.run_with_iobinding(binding, options)
        self._past = total
        return int(self._read(bound["logits"])[0, -1].argmax())

    def _read(self, value: Any) -> np.ndarray:
        from onnxruntime.capi.onnxruntime_inference_collection import copy_tensors

        dtype = TYPES[self._logits.type]
        copy = self._ort.OrtValue.ortvalue_from_shape_and_type(value.shape(), dtype, "cpu", 0)
        copy_tensors([value], [copy])
        return np.asarray(copy.numpy())


def answer(decoder: Decoder, request: dict[str, Any]) -> dict[str, Any]:
    """Time a prompt behind `depth` tokens, or what is generated behind it. Both are never asked at once."""
    prompt, before, n = request["prompt"], request["before"], request["generate"]
    decoder.reset()
    token = decoder.step(before) if before else 0
    tokens = []
    start = time.perf_counter()
    if prompt:
        tokens.append(decoder.step(prompt))
    for _ in range(n):
        tokens.append(token)
        token = decoder.step([token])
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def serve(lines: Any, say: Callable[[dict[str, Any]], None]) -> None:
    beginning = json.loads(next(lines))
    import onnxruntime
    import onnxruntime_ep_webgpu

    decoder = Decoder(onnxruntime, onnxruntime_ep_webgpu, Path(beginning["model"]), beginning["capacity"])
    version = onnxruntime_ep_webgpu.__version__ if hasattr(onnxruntime_ep_webgpu, "__version__") else ""
    name = f"ONNX Runtime {onnxruntime.__version__}, WebGPU provider {version}".rstrip()
    say({"name": name + (", graph capture" if decoder.captures else "")})
    for line in lines:
        say(answer(decoder, json.loads(line)))


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print what they like; only answers go where the parent reads

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        serve(iter(sys.stdin), say)
    except Exception as error:  # the parent says it
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
