"""GPU objects of one variant: buffers, pipelines and bind groups, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import wgpu

from .artifact import Artifact
from .errors import RuntimeFailure
from .limits import buffers_of
from .pipelines import Pipelines, compiling
from .programs import Copy, Dispatch, Program, Variant
from .replay import CopyCall, DispatchCall, Prepared, Recorder, prepare
from .schema import Manifest
from .shards import load_shards

FLUSH_NBYTES = 32 << 20
"""Uploads per submission, of which two may be in flight: wgpu keeps a copy of each until then."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that a session holds on the GPU."""

    device: Any
    recorder: Recorder
    buffers: dict[int, Any]
    programs: dict[str, Prepared]

    def destroy(self) -> None:
        self.recorder.close()
        for buffer in self.buffers.values():
            buffer.destroy()


def create_resources(
    artifact: Artifact,
    variant: Variant,
    device: Any,
    *,
    verify: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Resources:
    """Buffers with their weights, pipelines, bind groups and prepared programs of `variant`.

    Pipelines are made by threads while this one reads the weights.

    Raises:
        RuntimeFailure: out of memory, a shard or shader that is damaged, a shader that does not compile.
    """
    recorder = Recorder(device)
    with compiling(artifact, variant, device, verify) as pipelines:
        buffers = _create_buffers(artifact.manifest, buffers_of(artifact.manifest, variant), device)
        try:
            _upload_weights(artifact, buffers, device, recorder, verify, progress)
            groups: dict[Any, Any] = {}
            programs = {
                name: prepare(_calls(program, buffers, pipelines, device, groups))
                for name, program in variant.programs.items()
            }
        except BaseException:
            for buffer in buffers.values():
                buffer.destroy()
            raise
    return Resources(device, recorder, buffers, programs)


def _create_buffers(manifest: Manifest, used: set[int], device: Any) -> dict[int, Any]:
    total = sum(manifest.buffers[index].nbytes for index in used)
    buffers: dict[int, Any] = {}
    for index in sorted(used):
        buffer = manifest.buffers[index]
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        if buffer.indirect:
            usage |= wgpu.BufferUsage.INDIRECT
        try:
            buffers[index] = device.create_buffer(label=buffer.name, size=buffer.nbytes, usage=usage)
        except (wgpu.GPUError, MemoryError, RuntimeError):
            for made in buffers.values():
                made.destroy()
            raise RuntimeFailure(
                f"GPU memory for {buffer.name!r}",
                f"could not be had: the model needs {total / 2**30:.2f} GiB in all",
                "compile with a smaller --max-length, or close other programs that use the GPU",
            ) from None
    return buffers


def _upload_weights(
    artifact: Artifact,
    buffers: dict[int, Any],
    device: Any,
    recorder: Recorder,
    verify: bool,
    progress: Callable[[int], None] | None,
) -> None:
    waiting, last = 0, None

    def upload(buffer: int, offset: int, data: memoryview) -> None:
        nonlocal waiting, last
        device.queue.write_buffer(buffers[buffer], offset, data)
        waiting += len(data)
        if waiting >= FLUSH_NBYTES:
            submission = recorder.submit([])
            if last is not None:
                recorder.wait(last)
            waiting, last = 0, submission

    load_shards(artifact, set(buffers), upload, verify=verify, progress=progress)
    recorder.submit([])


def _calls(
    program: Program, buffers: dict[int, Any], pipelines: Pipelines, device: Any, groups: dict[Any, Any]
) -> list[DispatchCall | CopyCall]:
    calls: list[DispatchCall | CopyCall] = []
    for step in program.steps:
        if isinstance(step, Copy):
            source, target = buffers[step.source], buffers[step.target]
            calls.append(CopyCall(source, step.source_offset, target, step.target_offset, step.nbytes))
            continue
        group = _bind_group(step, buffers, pipelines, device, groups)
        x, y, z = step.grid or (0, 0, 0)
        indirect = None
        if step.indirect is not None:
            indirect = buffers[step.indirect.buffer], step.indirect.offset
        calls.append(DispatchCall(pipelines.get(step.shader), group, (x, y, z), indirect))
    return calls


def _bind_group(
    step: Dispatch, buffers: dict[int, Any], pipelines: Pipelines, device: Any, groups: dict[Any, Any]
) -> Any:
    layout = pipelines.layout(step.shader)
    key = (layout, *((bound.buffer, bound.offset, bound.nbytes) for bound in step.bindings))
    if key not in groups:
        entries = [
            {
                "binding": i,
                "resource": {"buffer": buffers[bound.buffer], "offset": bound.offset, "size": bound.nbytes},
            }
            for i, bound in enumerate(step.bindings)
        ]
        groups[key] = device.create_bind_group(layout=layout, entries=entries)
    return groups[key]
