"""The shaders: every distinct entry point with its constants, in as few WGSL files as kernels are related.

A file is named after its kernels and a hash of its content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..plan import ProgramPlan
from ..program import Grid, Kernel
from ..target import TARGETS, Target
from .modules import Entry, Unit, commented, file_stem, merged
from .wgsl import declarations, features_of, finished, header, render

_UNSAFE = re.compile(r"[^a-z0-9_]+")

FAMILIES = {
    "sample_keys.wgsl.j2": "sample",
    "sample_weights.wgsl.j2": "sample",
    "sample_candidates.wgsl.j2": "sample",
    "sample.wgsl.j2": "sample",
    "attention_decode.wgsl.j2": "attention",
    "attention_reduce.wgsl.j2": "attention",
    "attention_prefill.wgsl.j2": "attention",
    "attention_merge.wgsl.j2": "attention",
    "linear_gemm_int8.wgsl.j2": "gemm",
    "linear_gemm_rows.wgsl.j2": "gemm",
    "rms_norm.wgsl.j2": "int8",
    "quantize.wgsl.j2": "int8",
    "sequence_begin.wgsl.j2": "sequence",
    "sequence_advance.wgsl.j2": "sequence",
}
"""Templates whose kernels may share a file; the others' kernels share with those of their own template."""


@dataclass(frozen=True, slots=True)
class File:
    """A WGSL file."""

    name: str
    text: str
    sha256: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shader:
    """An entry point of a WGSL file, with values of its overrides: what a pipeline is made of."""

    file: File
    entry: str
    constants: tuple[tuple[str, float], ...]
    workgroup: Grid
    access: tuple[str, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """WebGPU features that the file enables."""
        return self.file.features


@dataclass(frozen=True, slots=True)
class ShaderSet:
    """All shaders of an artifact, and which one each step of each program of each variant runs.

    `targets`: what the variants are, by name.
    """

    shaders: tuple[Shader, ...]
    index: Mapping[tuple[str, str, str, int], int]  # (variant, kernel, program, step) -> shader
    targets: Mapping[str, Target]

    @property
    def files(self) -> tuple[File, ...]:
        """In order of first use."""
        return tuple({shader.file.name: shader.file for shader in self.shaders}.values())


Step = tuple[str, str, str, int]


@dataclass(slots=True)
class _Text:
    """A kernel's own text, and the steps that run it."""

    target: Target
    kernels: list[Kernel]
    steps: list[Step]

    def unit(self) -> Unit:
        kernel = self.kernels[0]
        name = _UNSAFE.sub("_", kernel.name.lower()).strip("_")[:64] or "kernel"
        if "_" not in name:  # `where` and others are WGSL's own words
            name += "_main"
        return Unit(name, declarations(kernel, self.target))


def render_shaders(
    variants: Mapping[str, Sequence[ProgramPlan]], targets: Mapping[str, Target] = TARGETS
) -> ShaderSet:
    """Render every kernel. Kernels of the same text are one shader, whichever layer or program they are of.

    Related kernels of a variant share a file, and so do variants whose kernels are the same.
    """
    places: dict[tuple[str, Entry], tuple[Grid, tuple[str, ...]]] = {}
    users: dict[tuple[str, str], list[Kernel]] = {}  # by text and entry point
    stems: dict[str, str] = {}
    of_step: dict[Step, tuple[str, Entry]] = {}
    for variant, programs in variants.items():
        for texts in _texts(variant, programs, targets[variant]).values():
            units = [text.unit() for text in texts]
            for module, members in merged(units):
                stems.setdefault(module.text, file_stem([units[i].name for i in members]))
                for entry, i in zip(module.entries, members, strict=True):
                    kernel = texts[i].kernels[0]
                    access = tuple(str(binding.access) for binding in kernel.bindings)
                    places.setdefault((module.text, entry), (kernel.workgroup, access))
                    users.setdefault((module.text, entry.name), []).extend(texts[i].kernels)
                    of_step |= dict.fromkeys(texts[i].steps, (module.text, entry))
    files = {text: _file(text, stem, users) for text, stem in stems.items()}
    numbers = {key: i for i, key in enumerate(dict.fromkeys(of_step.values()))}
    shaders = tuple(
        Shader(files[text], entry.name, entry.constants, *places[text, entry]) for text, entry in numbers
    )
    used = {variant: targets[variant] for variant in variants}
    return ShaderSet(shaders, {step: numbers[key] for step, key in of_step.items()}, used)


def _texts(variant: str, programs: Sequence[ProgramPlan], target: Target) -> dict[str, list[_Text]]:
    """The distinct texts of a variant's kernels, by the family of their templates."""
    families: dict[str, dict[tuple[object, ...], _Text]] = {}
    rendered: dict[tuple[object, ...], str] = {}
    for planned in programs:
        for step, kernel in enumerate(planned.program.kernels):
            access = tuple((b.variable, b.access) for b in kernel.bindings)
            signature = kernel.template, kernel.workgroup, kernel.constants, access
            if signature not in rendered:
                rendered[signature] = render(kernel, target)
            family = families.setdefault(FAMILIES.get(kernel.template, kernel.template), {})
            key = rendered[signature], kernel.workgroup, access
            text = family.setdefault(key, _Text(target, [], []))
            text.kernels.append(kernel)
            text.steps.append((variant, kernel.name, planned.program.name, step))
    return {name: list(family.values()) for name, family in families.items()}


def _file(text: str, stem: str, users: Mapping[tuple[str, str], Sequence[Kernel]]) -> File:
    """A module's file: its comments say which ONNX nodes an entry point is for."""
    entries = [entry for body, entry in users if body == text]
    comments = {entry: header(users[text, entry]) for entry in entries}
    code, whole = finished(commented(text, {})), finished(commented(text, comments))
    digest = hashlib.sha256(code.encode()).hexdigest()
    sha256 = hashlib.sha256(whole.encode()).hexdigest()
    return File(f"{stem}.{digest[:10]}.wgsl", whole, sha256, features_of(code))
