"""Times single kernels on this machine's GPU for whoever asks: what `webgpu-compile --tune` runs.

A process of its own, `python -m webgpu_compile.runtime.measure`: the compiler needs no GPU library, and a
driver that crashes takes nothing with it. It writes a line of JSON about the adapter, or an `error`; then
each line that it reads, a kernel, is answered by one with its `seconds`, or an `error`:

    {"wgsl": "…", "grid": [64, 1, 1], "bindings": [
      {"access": "r", "nbytes": 4096, "cold": true}, {"access": "r", "nbytes": 4, "words": [1]}]}

`cold` bindings lie elsewhere in memory for every dispatch, over more of it than caches hold. A model's
weights are as cold: between two uses of a matrix lie all the others, and a kernel that finds its own in the
L2 cache says little about it. Memory is zero but for `words`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import numpy as np
import wgpu

from .bench_timer import GpuTimer
from .device import names_of, request_adapter
from .errors import RuntimeFailure
from .limits import DEFAULTS, NATIVE_FEATURES
from .pipelines import BINDING_TYPES
from .shaders import create_module, create_pipeline

COLD_NBYTES = 256 << 20  # of the largest buffer that every device has: more than caches hold
SOFTWARE_COLD_NBYTES = 32 << 20
ALIGNMENT = 256
MIN_DISPATCHES, MAX_DISPATCHES = 16, 256  # timed together
REPEATS = 5
WARM_UP_SECONDS = 0.1  # an idle GPU lowers its clocks
SLOW_SECONDS = 0.01  # a round of all copies is not repeated within one measurement

Json = dict[str, Any]


def main(requests: Iterable[str], answers: TextIO) -> None:
    """Answer every request, until there are no more."""
    try:
        adapter = request_adapter()
        if "timestamp-query" not in adapter.features:
            raise RuntimeFailure("the GPU", "tells no times (timestamp-query)", "tune on another one")
        meter = Meter(adapter)
    except RuntimeFailure as error:
        _write(answers, {"error": str(error).splitlines()[0]})
        return
    _write(answers, facts(adapter))
    for line in requests:
        try:
            _write(answers, {"seconds": meter.seconds(json.loads(line))})
        except (RuntimeFailure, wgpu.GPUError) as error:
            _write(answers, {"error": str(error).splitlines()[0]})


def facts(adapter: Any) -> Json:
    """What the compiler wants to know of an adapter, in WebGPU's words."""
    vendor, device = names_of(adapter)
    features = [name for name, native in NATIVE_FEATURES.items() if native in adapter.features]
    return {"vendor": vendor, "device": device, "software": _is_software(adapter), "features": features}


class Meter:
    """A device and the memory in which kernels are timed."""

    def __init__(self, adapter: Any) -> None:
        features = [name for name in NATIVE_FEATURES.values() if name in adapter.features]
        limits = {name: min(value, adapter.limits[name]) for name, value in DEFAULTS.items()}
        self._device = adapter.request_device_sync(
            required_features=["timestamp-query", *features], required_limits=limits
        )
        self._timer = GpuTimer(self._device, 1)
        nbytes = min(COLD_NBYTES, limits["max-buffer-size"])
        self._cold_nbytes = SOFTWARE_COLD_NBYTES if _is_software(adapter) else nbytes
        self._cold: Any = None

    def seconds(self, kernel: Json) -> float:
        """GPU time of one dispatch of `kernel`, the least of some measurements.

        Raises:
            RuntimeFailure: it does not compile, or needs more memory than there is.
        """
        bindings = kernel["bindings"]
        entries = [
            {
                "binding": i,
                "visibility": wgpu.ShaderStage.COMPUTE,
                "buffer": {"type": BINDING_TYPES[binding["access"]], "min_binding_size": binding["nbytes"]},
            }
            for i, binding in enumerate(bindings)
        ]
        layout = self._device.create_bind_group_layout(entries=entries)
        whole = self._device.create_pipeline_layout(bind_group_layouts=[layout])
        module = create_module(self._device, "kernel.wgsl", kernel["wgsl"])
        pipeline = create_pipeline(self._device, module, whole)
        own = {i: self._buffer(binding) for i, binding in enumerate(bindings) if not binding.get("cold")}
        try:
            calls = [
                (pipeline, group, tuple(kernel["grid"])) for group in self._groups(layout, bindings, own)
            ]
            self._timer.seconds([calls])  # the driver may compile here
            if self._timer.seconds([calls])[0] < SLOW_SECONDS:
                calls *= -(-MIN_DISPATCHES // len(calls))
                self._timer.warm_up(calls, WARM_UP_SECONDS)
            return min(self._timer.seconds([calls])[0] for _ in range(REPEATS)) / len(calls)
        finally:
            for buffer in own.values():
                buffer.destroy()

    def _groups(self, layout: Any, bindings: list[Json], own: dict[int, Any]) -> list[Any]:
        """A bind group for every copy of the cold bindings."""
        places, stride = {}, 0
        for i, binding in enumerate(bindings):
            if i not in own:
                places[i] = stride
                stride += -(-binding["nbytes"] // ALIGNMENT) * ALIGNMENT
        cold = self._cold_memory(stride)
        n_copies = min(cold.size // stride, MAX_DISPATCHES) if stride else 1
        groups = []
        for at in range(0, n_copies * stride or 1, stride or 1):
            resources = [
                {"buffer": own[i], "offset": 0, "size": binding["nbytes"]}
                if i in own
                else {"buffer": cold, "offset": at + places[i], "size": binding["nbytes"]}
                for i, binding in enumerate(bindings)
            ]
            entries = [{"binding": i, "resource": resource} for i, resource in enumerate(resources)]
            groups.append(self._device.create_bind_group(layout=layout, entries=entries))
        return groups

    def _cold_memory(self, nbytes: int) -> Any:
        """At least `nbytes`, and as many as caches cannot hold."""
        if self._cold is None or self._cold.size < nbytes:
            if self._cold is not None:
                self._cold.destroy()
            size = max(nbytes, self._cold_nbytes)
            self._cold = self._device.create_buffer(size=size, usage=wgpu.BufferUsage.STORAGE)
        return self._cold

    def _buffer(self, binding: Json) -> Any:
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST
        buffer = self._device.create_buffer(size=binding["nbytes"], usage=usage)
        if words := binding.get("words"):
            self._device.queue.write_buffer(buffer, 0, np.array(words, np.uint32))
        return buffer


def _is_software(adapter: Any) -> bool:
    return bool(adapter.info["adapter_type"] == "CPU")


def _write(answers: TextIO, answer: Json) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
