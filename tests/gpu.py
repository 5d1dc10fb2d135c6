"""Run one kernel on the GPU, or check its WGSL with Tint, from a test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

import numpy as np

os.environ.setdefault("XDG_RUNTIME_DIR", "/tmp")

import wgpu
from webgpu_compile.compiler.emit.wgsl import render
from webgpu_compile.compiler.program import Access, IndirectGrid, Kernel, Program
from webgpu_compile.compiler.target import TARGETS, Target

ALL_TARGETS = tuple(TARGETS.values())
GPU_TARGETS = tuple(target for target in ALL_TARGETS if not target.cpu)
GUARD = 64
"""Guard words behind every writable binding: a kernel that writes past its end is noticed."""


@cache
def device() -> wgpu.GPUDevice:
    adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    features = [name for name in ("shader-f16", "subgroup") if name in adapter.features]
    return adapter.request_device_sync(required_features=features, required_limits={})


def run_kernel(kernel: Kernel, target: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dispatch `kernel` over copies of `arrays` (by binding variable); returns the written arrays.

    Writable arrays come back with their dtype and shape; words behind their end must be untouched.
    """
    if isinstance(kernel.grid, IndirectGrid):
        raise TypeError("give run_kernel a fixed grid")
    dev = device()
    source = render(kernel, target).replace("enable subgroups;\n", "")
    module = dev.create_shader_module(code=source)
    pipeline = dev.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
    buffers, entries = {}, []
    for index, binding in enumerate(kernel.bindings):
        data = np.ascontiguousarray(arrays[binding.variable]).tobytes()
        data += bytes(-len(data) % 4)
        guard = b"\xa5" * (4 * GUARD)
        offset = -(-len(data) // 256) * 256
        buffer = dev.create_buffer(size=offset + len(guard), usage=usage)
        dev.queue.write_buffer(buffer, 0, data)
        dev.queue.write_buffer(buffer, offset, guard)
        buffers[binding.variable] = (buffer, len(data), offset)
        entries.append({"binding": index, "resource": {"buffer": buffer, "offset": 0, "size": len(data)}})
    group = dev.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
    encoder = dev.create_command_encoder()
    compute = encoder.begin_compute_pass()
    compute.set_pipeline(pipeline)
    compute.set_bind_group(0, group)
    compute.dispatch_workgroups(*kernel.grid)
    compute.end()
    dev.queue.submit([encoder.finish()])
    results = {}
    for binding in kernel.bindings:
        if binding.access is Access.READ_WRITE:
            buffer, _, offset = buffers[binding.variable]
            like = arrays[binding.variable]
            raw = bytes(dev.queue.read_buffer(buffer))
            assert raw[offset:] == b"\xa5" * (4 * GUARD), f"{binding.variable}: written past its end"
            results[binding.variable] = np.frombuffer(raw[: like.nbytes], like.dtype).reshape(like.shape)
    return results


def run_program(program: Program, target: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the kernels of a program in order, one buffer per tensor; returns every tensor it wrote.

    `arrays` gives weights, inputs and state by tensor name, in their storage types; the rest starts as
    0xa5 bytes, so that a kernel which reads what nobody wrote is noticed.
    """
    values = {
        name: np.ascontiguousarray(arrays[name])
        if name in arrays
        else np.frombuffer(b"\xa5" * tensor.nbytes, np.uint8)
        for name, tensor in program.tensors.items()
    }
    for kernel in program.kernels:
        written = run_kernel(kernel, target, {b.variable: values[b.tensor] for b in kernel.bindings})
        for binding in kernel.bindings:
            if binding.variable in written:
                values[binding.tensor] = written[binding.variable]
    dtypes = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "u32": np.uint32}
    return {
        b.tensor: values[b.tensor].reshape(-1).view(np.uint8).view(dtypes[tensor.dtype]).reshape(tensor.shape)
        for kernel in program.kernels
        for b in kernel.bindings
        if b.access is Access.READ_WRITE
        for tensor in (program.tensors[b.tensor],)
    }
