"""`load`: from a folder to a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .artifact import open_artifact
from .device import choose_variant, request_adapter, request_device
from .native_types import parse_types
from .resources import create_resources
from .session import Session


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    adapter: Any = None,
    device: Any = None,
    power_preference: str = "high-performance",
    verify: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Session:
    """Check the artifact in `path` and put it on the GPU.

    Args:
        path: the folder that webgpu-compile wrote.
        variant: force one of the artifact's variants; None for the best that the adapter runs.
        adapter: a `wgpu.GPUAdapter` to use; None to ask for one.
        device: a `wgpu.GPUDevice` to share; it must have what the variant needs. `close` leaves it alone.
        power_preference: "high-performance" or "low-power", where there is a choice of adapters.
        verify: compare the hashes of shaders and weights. Sizes and ranges are checked in any case.
        progress: called with a number of bytes as weights are loaded.

    Raises:
        RuntimeFailure: not an artifact, damaged, newer than this runtime; no adapter, or one that lacks a
            feature, a limit or memory.
    """
    artifact = open_artifact(path)
    owns_device = device is None
    parse_types()
    gpu = device if device is not None else adapter or request_adapter(power_preference)
    chosen, reason = choose_variant(artifact.variants, gpu, variant)
    if owns_device:
        device = request_device(gpu, chosen)
    try:
        resources = create_resources(artifact, chosen, device, verify=verify, progress=progress)
    except BaseException:
        if owns_device:
            device.destroy()
        raise
    return Session(artifact.manifest, chosen, reason, resources, owns_device=owns_device)
