"""GPU time by timestamps: of a compute pass, so that one pass per kernel gives each kernel's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import wgpu

Call = tuple[Any, Any, tuple[int, int, int]]
"""Pipeline, bind group, grid."""

WARM_UP_SECONDS = 0.1
MAX_QUERIES = 4096
"""Of one query set, by the specification."""


class GpuTimer:
    """Times passes on one device, which needs the feature timestamp-query."""

    def __init__(self, device: Any, max_passes: int) -> None:
        self.max_passes = min(max_passes, MAX_QUERIES // 2)
        count = 2 * self.max_passes
        self._device = device
        self._queries = device.create_query_set(type="timestamp", count=count)
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        self._stamps = device.create_buffer(size=8 * count, usage=usage)

    def seconds(self, passes: Sequence[Sequence[Call]]) -> list[float]:
        """Run the passes one after the other; the seconds that each took on the GPU. At most `max_passes`."""
        encoder = self._device.create_command_encoder()
        for i, calls in enumerate(passes):
            writes = {
                "query_set": self._queries,
                "beginning_of_pass_write_index": 2 * i,
                "end_of_pass_write_index": 2 * i + 1,
            }
            _encode(encoder.begin_compute_pass(timestamp_writes=writes), calls)
        encoder.resolve_query_set(self._queries, 0, 2 * len(passes), self._stamps, 0)
        self._device.queue.submit([encoder.finish()])
        data = self._device.queue.read_buffer(self._stamps, 0, 16 * len(passes))
        stamps = np.frombuffer(data, np.uint64).reshape(-1, 2).astype(np.int64)  # WebGPU counts nanoseconds
        return [max(int(end - begin), 1) / 1e9 for begin, end in stamps]

    def warm_up(self, calls: Sequence[Call], seconds: float = WARM_UP_SECONDS) -> None:
        """Keep the GPU busy for a while: an idle one lowers its clocks, and small kernels then look slow."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            encoder = self._device.create_command_encoder()
            _encode(encoder.begin_compute_pass(), list(calls) * 8)
            self._device.queue.submit([encoder.finish()])
            self._device.queue.read_buffer(self._stamps, 0, 16)


def _encode(compute: Any, calls: Sequence[Call]) -> None:
    for pipeline, group, grid in calls:
        compute.set_pipeline(pipeline)
        compute.set_bind_group(0, group)
        compute.dispatch_workgroups(*grid)
    compute.end()
