"""What the device can do at most, measured: the ceilings that kernels are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import wgpu

from .bench_timer import GpuTimer

READ_NBYTES = 128 << 20  # what every device may bind; more than its caches hold
SOFTWARE_READ_NBYTES = 8 << 20
ARITHMETIC_GROUPS = 4096
SOFTWARE_GROUPS = 16
STEPS = 256 * 32  # multiply-accumulates of a thread (and component) in probe_f32.wgsl and probe_int8.wgsl
THREADS = 256
READ_TILE = 16 * THREADS * 16  # bytes that a workgroup of probe_read.wgsl reads


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second read from memory; operations per second (a multiply-accumulate is two)."""

    read: float
    int8: float
    f32: float


def measure_ceilings(device: Any, timer: GpuTimer, repeats: int = 5) -> Ceilings:
    """The best of some runs of each probe."""
    software = device.adapter_info["adapter_type"] == "CPU"
    nbytes = SOFTWARE_READ_NBYTES if software else READ_NBYTES
    groups = SOFTWARE_GROUPS if software else ARITHMETIC_GROUPS
    data = device.create_buffer(size=nbytes, usage=wgpu.BufferUsage.STORAGE)
    result = device.create_buffer(size=256, usage=wgpu.BufferUsage.STORAGE)

    def seconds(probe: str, n_groups: int) -> float:
        pipeline, group = _prepare(device, probe, data, result)
        call = (pipeline, group, (n_groups, 1, 1))
        timer.warm_up([call])
        return min(timer.seconds([[call]])[0] for _ in range(repeats))

    try:
        macs = groups * THREADS * STEPS
        return Ceilings(
            read=nbytes / seconds("read", nbytes // READ_TILE),
            int8=2 * 4 * macs / seconds("int8", groups),
            f32=2 * 4 * macs / seconds("f32", groups),
        )
    finally:
        data.destroy()
        result.destroy()


def _prepare(device: Any, probe: str, data: Any, result: Any) -> tuple[Any, Any]:
    source = (files(__package__) / f"probe_{probe}.wgsl").read_text(encoding="utf-8")
    entries = [
        {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
        for i, kind in enumerate(("read-only-storage", "storage"))
    ]
    layout = device.create_bind_group_layout(entries=entries)
    pipeline = device.create_compute_pipeline(
        layout=device.create_pipeline_layout(bind_group_layouts=[layout]),
        compute={"module": device.create_shader_module(label=probe, code=source), "entry_point": "main"},
    )
    resources = [
        {"binding": i, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}}
        for i, buffer in enumerate((data, result))
    ]
    return pipeline, device.create_bind_group(layout=layout, entries=resources)
