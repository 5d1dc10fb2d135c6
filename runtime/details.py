"""`details.json`: what people and tools want to know of an artifact, and no runtime needs.

The compiler writes it, webgpu-inspect and webgpu-bench read it; a page does not load it. The manifest's
`files` has its hash, and its steps are the manifest's, one for one. Numbers are those of the first variant.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import field

from .artifact import RECOMPILE, Artifact, strict_json
from .errors import RuntimeFailure
from .programs import Variant
from .schema import VERSION, Count, Name, Ordinal, Positive, Record, json_schema

FILE = "details.json"


class Graph(Record, frozen=True):
    """The ONNX graph before and after the passes. `memcpy` counts copies between host and GPU per call."""

    opset: Count = 0
    nodes_before: Count = 0
    nodes_after: Count = 0
    memcpy_before: Count = 0
    memcpy_after: Count = 0


class StepDetails(Record, frozen=True):
    """What a step implements and moves, at most: when the KV cache is full.

    `reads` and `writes` are bytes: of a table only the rows that are looked up, of a cache what attention
    sees or what is appended. `cache` is the part of `reads` that comes from the cache; it and `work`
    (multiply-accumulates) shrink with the length of the sequence where it is not 0.
    """

    nodes: list[Name] = field(default_factory=list)
    reads: Count = 0
    writes: Count = 0
    cache: Count = 0
    work: Count = 0


class Lifetime(Record, frozen=True, array_like=True):
    """A tensor in an activation buffer: [name, buffer, nbytes, first step, last step]."""

    name: Name
    buffer: Ordinal
    nbytes: Positive
    first: Count
    last: Count


class ProgramDetails(Record, frozen=True):
    """A program, with an entry for each of its steps in the manifest."""

    steps: list[StepDetails]
    lifetimes: list[Lifetime] = field(default_factory=list)


class Details(Record, frozen=True):
    """The whole file. `weights` names the initializers in each packed tensor; a tied one is in it once.

    `programs` and each variant's own in `variants` are those of the manifest.
    """

    format: Literal["webgpu-compile details"]
    version: Positive
    graph: Graph
    programs: dict[Name, ProgramDetails]
    weights: dict[Name, list[Name]]
    variants: dict[Name, dict[Name, ProgramDetails]] = field(default_factory=dict)

    def of(self, variant: Variant, program: str) -> ProgramDetails:
        """The details of a program as `variant` runs it."""
        own = self.variants.get(variant.name, {})
        return own[program] if program in own else self.programs[program]


def read_details(artifact: Artifact) -> Details:
    """Read and check `details.json`.

    Raises:
        RuntimeFailure: it is missing, changed, or does not fit the manifest.
    """
    data = artifact.file(FILE)
    strict_json(FILE, data)
    try:
        details = msgspec.json.decode(data, type=Details)
    except msgspec.ValidationError as error:
        raise RuntimeFailure(FILE, f"breaks the schema: {error}", RECOMPILE) from None
    if details.version != VERSION:
        raise RuntimeFailure(FILE, f"has schema version {details.version}, not {VERSION}", RECOMPILE)
    n_buffers = len(artifact.manifest.buffers)
    for variant in artifact.variants:
        for name, program in variant.programs.items():
            try:
                found = details.of(variant, name)
            except KeyError:
                raise RuntimeFailure(FILE, f"lacks the program {name!r}", RECOMPILE) from None
            n = len(program.steps)
            lives = all(life.buffer < n_buffers and life.last < n for life in found.lifetimes)
            if len(found.steps) != n or not lives:
                raise RuntimeFailure(FILE, f"does not fit the program {name!r}", RECOMPILE)
    return details


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("details.schema.json").write_bytes(json_schema(Details))
