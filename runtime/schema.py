"""The artifact's schema: everything that `manifest.json` may say, and nothing else.

The compiler writes it, this module reads it, `manifest.schema.json` (made from it by
`python -m webgpu_compile.runtime.schema`) is the same in JSON Schema for everyone else.
Unknown fields are errors: a newer artifact is refused, not half-understood.
All sizes and offsets are bytes; indices count from 0.

A manifest says everything once: what a browser downloads should be weights. `programs.py` spells it out.
What only people and tools want is in another file (`details.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

VERSION = 3
"""Version of the schema. Raised whenever an older runtime would misread the artifact."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Word = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
# `$` alone lets a final line feed through in Python.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$(?!\n)")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,127}$(?!\n)")]
Number = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]
Access = Annotated[str, Meta(pattern=r"^[rw]{1,64}$(?!\n)")]
Ordinal = Annotated[int, Meta(ge=0, le=65535)]
Index = Annotated[int, Meta(ge=0, le=2**24)]
WorkgroupCount = Annotated[int, Meta(ge=1, le=65535)]


class Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every part of an artifact's JSON files has in common."""


class ModelPort(Record, frozen=True):
    """An input or output as the exporter wrote it; a string in `shape` is a symbolic dimension."""

    name: Name
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: list[Count | Name]


class Model(Record, frozen=True):
    """What was compiled: `kind` is `decoder` for a language model, `graph` for a model without state."""

    name: Name
    kind: Literal["decoder", "graph"]
    inputs: list[ModelPort]
    outputs: list[ModelPort]


class Port(Record, frozen=True):
    """An input or output of a program, under the model's name.

    `dtype` is ONNX's, `storage` the element type on the GPU (int64 is i32 there, bool u32; f16 results may be
    kept in f32 until they are read). It fills the first `nbytes` (a multiple of 4) of `buffer`; `nbytes` may
    exceed the shape's by padding. A decoder's caches can be read where `decode` has a port for them: the
    whole cache, [1, kv_heads, capacity, head_size].
    """

    name: Name
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: list[Count]
    storage: Literal["f32", "f16", "i32", "u32", "u8", "i8"]
    buffer: Ordinal
    nbytes: Count


class Sequence(Record, frozen=True):
    """A decoder's state on the GPU.

    `words` gives the index of each 32-bit word of the `sequence` buffer: past_length (positions in the
    cache), length (rows of this step), total_length (their sum), call_length (total at the end of the call),
    n_tokens (tokens known), limit (tokens at which generation ends), stop (0 runs, 1 stop token, 2 limit),
    n_stop_tokens and stop_tokens (the first of `max_stop_tokens`).
    An artifact that can sample has nine more, written once per call: sampling (0 takes the arg-max and the
    others are not read, 1 draws a token, 2 takes the first one that the filters leave), seed_low, seed_high,
    inverse_temperature (f32: 2^26 · log2(e) / temperature), top_k (0: all), top_p (round(p · 2^32) within 1
    and 2^32 - 1; 0: all), min_p (ceil(min_p · 2^31), at least 1), repetition_penalty (f32) and
    inverse_repetition_penalty (f32: 1 / penalty). The f32 words are computed in f64, rounded once to f32, and
    kept between the least normal and the greatest finite one. Greedy with a penalty is sampling 2 with the
    greatest f32 as inverse_temperature, top_k 1 and top_p 0.
    `tokens` is an i32 buffer of `capacity` + 1 token ids by position. `ids`, `logits`, `mask` and `positions`
    are the model's own names of these ports.
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
    ids: Name
    logits: Name
    mask: Name | None = None
    positions: Name | None = None


class Buffer(Record, frozen=True):
    """One GPU buffer. `nbytes` is a multiple of 4.

    A buffer of kind `weights` holds the data section of the one shard that names it, byte for byte, and no
    program writes it. `indirect` marks those that grids are read from. Buffers that the chosen variant does
    not use are not made.
    """

    name: Name
    nbytes: Positive
    kind: Literal["weights", "state", "activation", "input", "output"]
    indirect: bool = False


class Shard(Record, frozen=True):
    """A safetensors file. Its data section starts at `data_offset`, a multiple of 256.

    `blocks` are the SHA-256 of consecutive `block_nbytes` (4 KiB to 64 MiB, a multiple of 4) of the whole
    file. Its header lists the packed tensors, each at a multiple of 256; the gaps between them are entries
    named `.padding.<number>`: U8, fewer than 256 bytes, zero.
    """

    file: FileName
    nbytes: Positive
    data_offset: Positive
    buffer: Ordinal
    block_nbytes: Positive
    blocks: list[Sha256]


class Shader(Record, frozen=True):
    """An entry point of a WGSL file under `shaders/`: bindings 0, 1, … of group 0, all storage buffers.

    `constants` are values of the file's overrides, where they are not the default. `access` has a letter a
    binding: `r` is read, `w` is read_write. `features` are those that the file enables.
    """

    file: FileName
    workgroup: Annotated[list[Positive], Meta(min_length=3, max_length=3)]
    access: Access
    features: list[Name] = []
    entry: Identifier = "main"
    constants: dict[Identifier, Number] = {}

    @property
    def label(self) -> str:
        """For people: the file, and the entry point if there may be others."""
        return self.file if self.entry == "main" else f"{self.file} {self.entry}"


class Range(Record, frozen=True, array_like=True):
    """A part of a buffer: [buffer, offset, nbytes]. What is bound starts at a multiple of 256."""

    buffer: Ordinal
    offset: Count
    nbytes: Positive


class Launch(Record, frozen=True, array_like=True):
    """How a variant runs a kernel: [shader, grid], where a grid is three numbers or in a range of memory."""

    shader: Ordinal
    grid: Annotated[list[WorkgroupCount], Meta(min_length=3, max_length=3)] | Index


class Copy(Record, frozen=True):
    """Copy a range to another of the same size, on the GPU."""

    source: Index
    target: Index


Dispatch = Annotated[list[Index], Meta(min_length=2)]
"""Run a kernel: [kernel, range of binding 0, range of binding 1, …]."""


class Program(Record, frozen=True):
    """A static schedule. `rows` sequence positions per replay; 0 for a model without a sequence."""

    rows: Count
    steps: list[Dispatch | Copy]
    inputs: list[Port] = []
    outputs: list[Port] = []


class Adapter(Record, frozen=True):
    """The GPU that a variant was tuned for: the vendor as WebGPU names it, and the device where it is known.

    A browser names no device: there the vendor decides.
    """

    vendor: Name
    device: str = ""


class Variant(Record, frozen=True):
    """One shader set over the shared weights: which WebGPU features and limits it needs.

    `limits` has WebGPU's names with dashes (max-buffer-size for maxBufferSize); a limit that it does not name
    is the specification's default. One with an `adapter` is left out on others. `launches` has an entry a
    kernel, null for one that it does not run. `programs` are those that it has otherwise than the manifest
    says for all variants, or alone. `software`: for adapters that a CPU plays (WebGPU's fallback adapters).
    """

    name: Name
    features: list[Literal["shader-f16", "subgroups"]]
    limits: dict[Name, Count]
    launches: list[Launch | None]
    programs: dict[Name, Program] = {}
    adapter: Adapter | None = None
    software: bool = False


class Manifest(Record, frozen=True):
    """The whole artifact. The runtime takes the first variant of the list that the adapter can run:
    those that are `software` before others where a CPU plays the GPU, and after them where none does.

    A step of a program names a kernel and the ranges that it binds; the variant says which shader the kernel
    is, over which grid. A decoder has the programs `decode` (rows 1; also `decode_sampled`, if it can sample)
    and one or more `prefill_N` (rows N), which give logits [1, 1, vocab]; with `all_logits` also `logits_N`,
    which give [1, N, vocab]. A graph has `run`.
    """

    format: Literal["webgpu-compile"]
    version: Positive
    producer: Name
    model: Model
    buffers: list[Buffer]
    shards: list[Shard]
    modules: dict[FileName, Sha256]
    """The WGSL files under `shaders/`."""
    shaders: list[Shader]
    kernels: list[Name]
    ranges: list[Range]
    programs: dict[Name, Program]
    variants: Annotated[list[Variant], Meta(min_length=1)]
    sequence: Sequence | None = None
    files: dict[FileName, Sha256] = {}
    """Other files of the folder: tokenizer.json, index.html, …"""


def json_schema(kind: type[Record] = Manifest) -> bytes:
    """A schema as JSON Schema (2020-12), formatted for reading."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(kind)), indent=2) + b"\n"


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).with_name("manifest.schema.json").write_bytes(json_schema())
