"""Pipelines of a variant, one per shader, made on several threads while the weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import wgpu

from .artifact import Artifact
from .programs import Dispatch, Variant
from .shaders import Module, create_module, create_pipeline

MAX_THREADS = 8
BINDING_TYPES = {"r": "read-only-storage", "w": "storage"}

Sizes = tuple[int, ...]
"""Bytes of each binding."""


class Pipelines:
    """Pipelines and bind group layouts by the index of their shader."""

    def __init__(self, layouts: Mapping[int, Any], pipelines: Mapping[int, Future[Any]]) -> None:
        self._layouts = layouts
        self._pipelines = pipelines

    def layout(self, shader: int) -> Any:
        """The bind group layout of a shader."""
        return self._layouts[shader]

    def get(self, shader: int) -> Any:
        """The pipeline of a shader, once it is there.

        Raises:
            RuntimeFailure: the shader is damaged, does not compile, or needs larger bindings than it has.
        """
        return self._pipelines[shader].result()


@contextmanager
def compiling(artifact: Artifact, variant: Variant, device: Any, verify: bool) -> Iterator[Pipelines]:
    """All pipelines of `variant`, under way on threads that are gone when the block ends.

    The layout of a shader says how much its dispatches bind at least, so that a shader that needs more is
    refused here and not when its first dispatch is encoded.
    """
    shaders = artifact.manifest.shaders
    layouts: dict[tuple[str, Sizes], tuple[Any, Any]] = {}
    of_shader: dict[int, tuple[Any, Any]] = {}
    for shader, sizes in sorted(_least_sizes(variant).items()):
        key = shaders[shader].access, sizes
        if key not in layouts:
            layouts[key] = _create_layout(device, *key)
        of_shader[shader] = layouts[key]

    def load(file: str) -> Module:
        return create_module(device, file, artifact.module_source(file, verify=verify))

    def create(shader: int) -> Any:
        module, known = modules[shaders[shader].file].result(), shaders[shader]
        return create_pipeline(device, module, of_shader[shader][1], known.entry, known.constants)

    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="compile")
    try:
        files = dict.fromkeys(shaders[shader].file for shader in of_shader)
        modules = {file: pool.submit(load, file) for file in files}  # ahead of those that wait for them
        futures = {shader: pool.submit(create, shader) for shader in of_shader}
        yield Pipelines({shader: group for shader, (group, _) in of_shader.items()}, futures)
    finally:
        pool.shutdown(cancel_futures=True)


def _least_sizes(variant: Variant) -> dict[int, Sizes]:
    """By shader: the least that a dispatch of it binds, by binding."""
    least: dict[int, Sizes] = {}
    for program in variant.programs.values():
        for step in program.steps:
            if isinstance(step, Dispatch):
                sizes = tuple(bound.nbytes for bound in step.bindings)
                known = least.get(step.shader, sizes)
                least[step.shader] = tuple(map(min, known, sizes))
    return least


def _create_layout(device: Any, access: str, sizes: Sizes) -> tuple[Any, Any]:
    """(bind group layout, pipeline layout)."""
    entries = [
        {
            "binding": i,
            "visibility": wgpu.ShaderStage.COMPUTE,
            "buffer": {"type": BINDING_TYPES[how], "min_binding_size": nbytes},
        }
        for i, (how, nbytes) in enumerate(zip(access, sizes, strict=True))
    ]
    group = device.create_bind_group_layout(entries=entries)
    return group, device.create_pipeline_layout(bind_group_layouts=[group])
