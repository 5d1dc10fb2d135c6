"""CPU time of a replay per dispatch, without what the GPU does: `python tests/runtime/replay_cost.py [OUT]`.

OUT is an artifact whose decode program is replayed, 8 tokens per submission; without it some kernels of no
model are. It times, it does not test.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import wgpu
from toy_artifact import build_decoder
from webgpu_compile.runtime import load
from webgpu_compile.runtime.replay import DispatchCall, Recorder, emptied, prepare

N_DISPATCHES = 256
REPEATS = 40
N_TOKENS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as toy:
        folder = sys.argv[1] if len(sys.argv) > 1 else build_decoder(Path(toy) / "out")
        with load(folder) as session:
            resources = session._resources
            calls = different_pipelines(resources)
            program = resources.programs["decode"] if len(sys.argv) > 1 else prepare(calls)
            work = [emptied(program)] * N_TOKENS
            n = N_TOKENS * program.n_dispatches
            print(f"wgpu {wgpu.__version__}, {program.n_dispatches} dispatches x {N_TOKENS}")
            for n_threads in (1, 2, 3, 4):
                recorder = Recorder(resources.device, n_threads)
                encode, whole = time_per_dispatch(lambda r=recorder: replay(r, work), n)
                print(f"{n_threads} threads: {encode:.2f} µs a dispatch to submit, {whole:.2f} until done")
                recorder.close()
            public = time_per_dispatch(lambda: replay_publicly(resources.device, calls), N_DISPATCHES)
            print(f"public API: {public[0]:.2f}, {public[1]:.2f}")


def replay(recorder, work) -> tuple[float, float]:
    """Seconds until submitted, and until done."""
    start = time.perf_counter()
    submission = recorder.submit(work)
    submitted = time.perf_counter()
    recorder.wait(submission)
    return submitted - start, time.perf_counter() - start


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


def replay_publicly(device, calls) -> tuple[float, float]:
    start = time.perf_counter()
    encoder = device.create_command_encoder()
    compute = encoder.begin_compute_pass()
    for call in calls:
        compute.set_pipeline(call.pipeline)
        compute.set_bind_group(0, call.bind_group)
        compute.dispatch_workgroups(0, 0, 0)
    compute.end()
    device.queue.submit([encoder.finish()])
    submitted = time.perf_counter()
    device._poll_wait()
    return submitted - start, time.perf_counter() - start


def time_per_dispatch(function, n_dispatches) -> list[float]:
    """Medians in microseconds."""
    times = [function() for _ in range(REPEATS)]
    return [1e6 * statistics.median(column) / n_dispatches for column in zip(*times, strict=True)]


if __name__ == "__main__":
    main()
