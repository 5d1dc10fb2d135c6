"""The artifact's schema: everything that `manifest.json` may say, and nothing else.

The compiler writes it, this module reads it, `manifest.schema.json` (made from it by
`python -m webgpu_compile.runtime.schema`) is the same in JSON Schema for everyone else.
Unknown fields are errors: a newer artifact is refused, not half-understood.
All sizes and offsets are bytes; indices count from 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

VERSION = 1
"""Version of the schema. Raised whenever an older runtime would misread the artifact."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Word = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Ordinal = Annotated[int, Meta(ge=0, le=65535)]
WorkgroupCount = Annotated[int, Meta(ge=1, le=65535)]


class _Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Port(_Record):
    """An input or output of the model under its own name.

    `dtype` and `shape` are ONNX's (a string in `shape` is a symbolic dimension); `storage` is the element
    type on the GPU (int64 is i32 there; f16 results are kept in f32 until they are read). `buffer` holds it.
    """

    name: Name
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: list[Count | Name]
    storage: Literal["f32", "f16", "i32", "u32", "u8", "i8"]
    buffer: Ordinal | None = None
    nbytes: Count = 0


class Model(_Record):
    """What was compiled: `kind` is `decoder` for a language model, `graph` for a model without state."""

    name: Name
    kind: Literal["decoder", "graph"]
    inputs: list[Port]
    outputs: list[Port]
    opset: Count = 0
    nodes_before: Count = 0
    nodes_after: Count = 0
    memcpy_before: Count = 0
    memcpy_after: Count = 0


class Sequence(_Record):
    """A decoder's state on the GPU.

    `words` gives the index of each 32-bit word of the `sequence` buffer: past_length (positions in the
    cache), length (rows of this step), total_length (their sum), call_length (total at the end of the call),
    n_tokens (tokens known), limit (tokens at which generation ends), stop (0 runs, 1 stop token, 2 limit),
    n_stop_tokens and stop_tokens (the first of `max_stop_tokens`).
    `tokens` is an i32 buffer of `capacity` + 1 token ids by position.
    """

    buffer: Ordinal
    tokens: Ordinal
    words: dict[Name, Ordinal]
    capacity: Positive
    vocab_size: Positive
    max_stop_tokens: Positive
    stop_tokens: list[Word]
    driven_by: Literal["gpu", "host"]
    all_logits: bool
    """Whether `run` can give logits for every position; False: the exporter kept the last position's only."""


class Buffer(_Record):
    """One GPU buffer. Weights: buffer i holds the data section of shard i, byte for byte."""

    name: Name
    nbytes: Positive
    kind: Literal["weights", "state", "activation", "input", "output"]
    indirect: bool = False


class Shard(_Record):
    """A safetensors file. Its data section starts at `data_offset`, a multiple of 256.

    `blocks` are the SHA-256 of consecutive `block_nbytes` bytes of the whole file.
    """

    file: FileName
    nbytes: Positive
    data_offset: Positive
    buffer: Ordinal
    block_nbytes: Positive
    blocks: list[Sha256]


class Weight(_Record):
    """A packed tensor: `offset` into the data section of `shard`. `onnx` names the initializers in it."""

    name: Name
    dtype: Literal["f32", "f16", "i32", "u32", "u8", "i8"]
    shape: list[Count]
    shard: Ordinal
    offset: Count
    nbytes: Positive
    onnx: list[Name]


class Shader(_Record):
    """A WGSL file under `shaders/` with the entry point `main`. Every binding is a storage buffer of group 0."""

    file: FileName
    sha256: Sha256
    workgroup: Annotated[list[Positive], Meta(min_length=3, max_length=3)]
    access: list[Literal["read", "read_write"]]
    features: list[Name] = []


class Bound(_Record, array_like=True):
    """A range of a buffer bound to a shader: [buffer, offset, nbytes]."""

    buffer: Ordinal
    offset: Count
    nbytes: Positive


class Indirect(_Record, array_like=True):
    """A grid read from a buffer: [buffer, offset]."""

    buffer: Ordinal
    offset: Count


class Dispatch(_Record, tag="dispatch", tag_field="step"):
    """Run `shader` over `grid` workgroups (or an indirect grid). Binding i is `bindings[i]`."""

    kernel: Name
    shader: Ordinal
    bindings: list[Bound]
    grid: Annotated[list[WorkgroupCount], Meta(min_length=3, max_length=3)] | None = None
    indirect: Indirect | None = None
    nodes: list[Name] = []
    reads: Count = 0
    writes: Count = 0
    work: Count = 0


class Copy(_Record, tag="copy", tag_field="step"):
    """Copy `nbytes` between buffers on the GPU."""

    source: Ordinal
    source_offset: Count
    target: Ordinal
    target_offset: Count
    nbytes: Positive


class Lifetime(_Record, array_like=True):
    """A tensor in an activation buffer: [name, buffer, nbytes, first step, last step]."""

    name: Name
    buffer: Ordinal
    nbytes: Positive
    first: Count
    last: Count


class Program(_Record):
    """A static schedule. `rows` sequence positions per replay; 0 for a model without a sequence."""

    rows: Count
    steps: list[Dispatch | Copy]
    inputs: list[Port] = []
    outputs: list[Port] = []
    lifetimes: list[Lifetime] = []


class Variant(_Record):
    """One shader set over the shared weights: which WebGPU features and limits it needs, and its programs."""

    name: Name
    features: list[Literal["shader-f16", "subgroups"]]
    limits: dict[Name, Count]
    programs: dict[Name, Program]


class Manifest(_Record):
    """The whole artifact. The runtime takes the first variant of the list that the adapter can run."""

    format: Literal["webgpu-compile"]
    version: Positive
    producer: Name
    model: Model
    buffers: list[Buffer]
    shards: list[Shard]
    weights: list[Weight]
    shaders: list[Shader]
    variants: Annotated[list[Variant], Meta(min_length=1)]
    sequence: Sequence | None = None
    files: dict[FileName, Sha256] = {}
    """Other files of the folder: tokenizer.json, index.html, …"""


def json_schema() -> bytes:
    """The schema as JSON Schema (2020-12), formatted for reading."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Manifest)), indent=2) + b"\n"


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("manifest.schema.json").write_bytes(json_schema())
