"""GPU objects of one variant: buffers, pipelines and bind groups, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import wgpu

from .artifact import Artifact
from .errors import RuntimeFailure
from .limits import buffers_of, shaders_of
from .replay import CopyCall, DispatchCall, Prepared, Recorder, prepare
from .schema import Copy, Dispatch, Manifest, Program, Variant
from .shaders import create_pipeline
from .shards import load_shards

FLUSH_NBYTES = 64 << 20
"""Uploads in flight: wgpu keeps a staging copy of each until the next submission is done."""


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

    Every program is tried once with nothing to do, so that an error shows here.

    Raises:
        RuntimeFailure: out of memory, a shard or shader that is damaged, a shader that does not compile.
    """
    recorder = Recorder(device)
    pipelines = _Pipelines(artifact, device, verify)
    for index in sorted(shaders_of(variant)):
        pipelines.get(index)
    buffers = _create_buffers(artifact.manifest, buffers_of(artifact.manifest, variant), device)
    try:
        _upload_weights(artifact, buffers, device, recorder, verify, progress)
        programs = {}
        groups: dict[Any, Any] = {}
        for name, program in variant.programs.items():
            programs[name] = prepare(_calls(program, buffers, pipelines, device, groups))
            recorder.check(programs[name])
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
    waiting = 0

    def upload(buffer: int, offset: int, data: bytearray) -> None:
        nonlocal waiting
        device.queue.write_buffer(buffers[buffer], offset, data)
        waiting += len(data)
        if waiting >= FLUSH_NBYTES:
            recorder.wait(recorder.submit([]))
            waiting = 0

    load_shards(artifact, set(buffers), upload, verify=verify, progress=progress)
    recorder.wait(recorder.submit([]))


class _Pipelines:
    """Pipelines by shader, and bind group layouts by access."""

    def __init__(self, artifact: Artifact, device: Any, verify: bool) -> None:
        self._artifact = artifact
        self._device = device
        self._verify = verify
        self._layouts: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self._pipelines: dict[int, Any] = {}

    def layout(self, index: int) -> tuple[Any, Any]:
        """(bind group layout, pipeline layout) of a shader."""
        access = tuple(self._artifact.manifest.shaders[index].access)
        if access not in self._layouts:
            kinds = {"read": "read-only-storage", "read_write": "storage"}
            entries = [
                {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kinds[how]}}
                for i, how in enumerate(access)
            ]
            group = self._device.create_bind_group_layout(entries=entries)
            whole = self._device.create_pipeline_layout(bind_group_layouts=[group])
            self._layouts[access] = group, whole
        return self._layouts[access]

    def get(self, index: int) -> Any:
        if index not in self._pipelines:
            source = self._artifact.shader_source(index, verify=self._verify)
            name = self._artifact.manifest.shaders[index].file
            self._pipelines[index] = create_pipeline(self._device, name, source, self.layout(index)[1])
        return self._pipelines[index]


def _calls(
    program: Program, buffers: dict[int, Any], pipelines: _Pipelines, device: Any, groups: dict[Any, Any]
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
    step: Dispatch, buffers: dict[int, Any], pipelines: _Pipelines, device: Any, groups: dict[Any, Any]
) -> Any:
    layout, _ = pipelines.layout(step.shader)
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
