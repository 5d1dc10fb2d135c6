"""The shader files: one per distinct text, named after its kernel and a hash of its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..plan import ProgramPlan
from ..program import Grid, Kernel
from ..target import TARGETS, Target
from .wgsl import features_of, header, render

_UNSAFE = re.compile(r"[^a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Shader:
    """One WGSL file."""

    file: str
    text: str
    sha256: str
    workgroup: Grid
    access: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShaderSet:
    """All shaders of an artifact, and which one each step of each program of each variant runs.

    `targets`: what the variants are, by name.
    """

    shaders: tuple[Shader, ...]
    index: Mapping[tuple[str, str, str, int], int]  # (variant, kernel, program, step) -> shader
    targets: Mapping[str, Target]


def render_shaders(
    variants: Mapping[str, Sequence[ProgramPlan]], targets: Mapping[str, Target] = TARGETS
) -> ShaderSet:
    """Render every kernel; kernels of the same text share a file, whichever layer or program they are of."""
    users: dict[tuple[str, Grid, tuple[str, ...]], list[Kernel]] = {}
    steps: dict[tuple[str, str, str, int], tuple[str, Grid, tuple[str, ...]]] = {}
    rendered: dict[tuple[object, ...], str] = {}
    for variant, programs in variants.items():
        target = targets[variant]
        for planned in programs:
            for step, kernel in enumerate(planned.program.kernels):
                signature = (
                    target,
                    kernel.template,
                    kernel.workgroup,
                    kernel.constants,
                    tuple((b.variable, b.access) for b in kernel.bindings),
                )
                if signature not in rendered:
                    rendered[signature] = render(kernel, target)
                access = tuple(str(b.access) for b in kernel.bindings)
                key = rendered[signature], kernel.workgroup, access
                users.setdefault(key, []).append(kernel)
                steps[variant, kernel.name, planned.program.name, step] = key
    numbers = {key: i for i, key in enumerate(users)}
    shaders = tuple(_shader(key, kernels) for key, kernels in users.items())
    used = {variant: targets[variant] for variant in variants}
    return ShaderSet(shaders, {step: numbers[key] for step, key in steps.items()}, used)


def _shader(key: tuple[str, Grid, tuple[str, ...]], kernels: Sequence[Kernel]) -> Shader:
    body, workgroup, access = key
    text = header(kernels) + body
    name = _UNSAFE.sub("_", kernels[0].name.lower()).strip("_")[:64] or "kernel"
    digest = hashlib.sha256(body.encode()).hexdigest()
    return Shader(
        file=f"{name}.{digest[:10]}.wgsl",
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        workgroup=workgroup,
        access=access,
        features=features_of(body),
    )
