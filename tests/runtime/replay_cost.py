"""CPU time of a replay per dispatch (encode, submit, wait): `python tests/runtime/replay_cost.py`.

It times, it does not test.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import wgpu
from toy_artifact import build_decoder
from webgpu_compile.runtime import load
from webgpu_compile.runtime.replay import DispatchCall, emptied, prepare

N_DISPATCHES = 256
REPEATS = 40


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, load(build_decoder(Path(folder) / "out")) as session:
        resources = session._resources
        calls = different_pipelines(resources)
        program = prepare(calls)
        work = [emptied(program)]
        ours = time_per_dispatch(lambda: resources.recorder.wait(resources.recorder.submit(work)))
        public = time_per_dispatch(lambda: replay_publicly(resources.device, calls))
        print(f"{wgpu.__version__}: {ours:.2f} µs a dispatch, public API {public:.2f} µs")


def different_pipelines(resources) -> list[DispatchCall]:
    """Dispatches that alternate between two pipelines and many bind groups, as a model's do."""
    device = resources.device
    entries = [
        {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
        for i, kind in enumerate(["read-only-storage"] * 3 + ["storage"])
    ]
    layout = device.create_bind_group_layout(entries=entries)
    whole = device.create_pipeline_layout(bind_group_layouts=[layout])
    source = "".join(
        f"@group(0) @binding({i}) var<storage, {'read_write' if i == 3 else 'read'}> b{i}: array<f32>;\n"
        for i in range(4)
    )
    source += "@compute @workgroup_size(1)\nfn main() { b3[0] = b0[0] + b1[0] + b2[0]; }\n"
    module = device.create_shader_module(code=source)
    pipelines = [
        device.create_compute_pipeline(layout=whole, compute={"module": module, "entry_point": "main"})
        for _ in range(2)
    ]
    usage = wgpu.BufferUsage.STORAGE
    buffers = [device.create_buffer(size=1024, usage=usage) for _ in range(32)]
    calls = []
    for i in range(N_DISPATCHES):
        entries = [{"binding": j, "resource": {"buffer": buffers[(i + 7 * j) % 32]}} for j in range(4)]
        group = device.create_bind_group(layout=layout, entries=entries)
        calls.append(DispatchCall(pipelines[i % 2], group, (4, 1, 1)))
    return calls


def replay_publicly(device, calls) -> None:
    encoder = device.create_command_encoder()
    compute = encoder.begin_compute_pass()
    for call in calls:
        compute.set_pipeline(call.pipeline)
        compute.set_bind_group(0, call.bind_group)
        compute.dispatch_workgroups(0, 0, 0)
    compute.end()
    device.queue.submit([encoder.finish()])


def time_per_dispatch(function) -> float:
    """Median in microseconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / N_DISPATCHES


if __name__ == "__main__":
    main()
