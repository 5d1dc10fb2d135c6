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
# `$` alone lets a final line feed through in Python.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$(?!\n)")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Ordinal = Annotated[int, Meta(ge=0, le=65535)]
WorkgroupCount = Annotated[int, Meta(ge=1, le=65535)]


class _Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Port(_Record, frozen=True):
    """An input or output of the model under its own name.

    `dtype` and `shape` are ONNX's (a string in `shape` is a symbolic dimension); `storage` is the element
    type on the GPU (int64 is i32 there, bool u32; f16 results may be kept in f32 until they are read).
    It fills the first `nbytes` (a multiple of 4) of `buffer`.

    The ports of a program have concrete shapes and a buffer each; `nbytes` may exceed the shape's by padding.
    Those of the model are as the exporter wrote them. A decoder's `present.*` can be read if `decode` has a
    port of that name: the whole cache, [1, kv_heads, capacity, head_size].
    """

    name: Name
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: list[Count | Name]
    storage: Literal["f32", "f16", "i32", "u32", "u8", "i8"]
    buffer: Ordinal | None = None
    nbytes: Count = 0


class Model(_Record, frozen=True):
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


class Sequence(_Record, frozen=True):
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


class Buffer(_Record, frozen=True):
    """One GPU buffer. `nbytes` is a multiple of 4.

    A buffer of kind `weights` holds the data section of the one shard that names it, byte for byte, and no
    program writes it. `indirect` marks those that grids are read from. Buffers that the chosen variant does
    not use are not made.
    """

    name: Name
    nbytes: Positive
    kind: Literal["weights", "state", "activation", "input", "output"]
    indirect: bool = False


class Shard(_Record, frozen=True):
    """A safetensors file. Its data section starts at `data_offset`, a multiple of 256.

    `blocks` are the SHA-256 of consecutive `block_nbytes` (4 KiB to 64 MiB, a multiple of 4) of the whole
    file. Its header lists every `Weight` under its name with the same dtype, shape and offset; the gaps up to
    the next multiple of 256 are entries named `.padding.<number>`: U8, fewer than 256 bytes, zero.
    """

    file: FileName
    nbytes: Positive
    data_offset: Positive
    buffer: Ordinal
    block_nbytes: Positive
    blocks: list[Sha256]


class Weight(_Record, frozen=True):
    """A packed tensor: `offset` (a multiple of 256) into the data section of `shard`.

    `nbytes` is the product of `shape` times the size of `dtype`, rounded up to 4. `onnx` names the
    initializers in it.
    """

    name: Name
    dtype: Literal["f32", "f16", "i32", "u32", "u8", "i8"]
    shape: list[Count]
    shard: Ordinal
    offset: Count
    nbytes: Positive
    onnx: list[Name]


class Shader(_Record, frozen=True):
    """A WGSL file under `shaders/`: entry point `main`, bindings 0, 1, … of group 0, all storage buffers."""

    file: FileName
    sha256: Sha256
    workgroup: Annotated[list[Positive], Meta(min_length=3, max_length=3)]
    access: list[Literal["read", "read_write"]]
    features: list[Name] = []


class Bound(_Record, frozen=True, array_like=True):
    """A range of a buffer bound to a shader: [buffer, offset, nbytes]."""

    buffer: Ordinal
    offset: Count
    nbytes: Positive


class Indirect(_Record, frozen=True, array_like=True):
    """A grid read from a buffer: [buffer, offset]."""

    buffer: Ordinal
    offset: Count


class Dispatch(_Record, frozen=True, tag="dispatch", tag_field="step"):
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


class Copy(_Record, frozen=True, tag="copy", tag_field="step"):
    """Copy `nbytes` between buffers on the GPU."""

    source: Ordinal
    source_offset: Count
    target: Ordinal
    target_offset: Count
    nbytes: Positive


class Lifetime(_Record, frozen=True, array_like=True):
    """A tensor in an activation buffer: [name, buffer, nbytes, first step, last step]."""

    name: Name
    buffer: Ordinal
    nbytes: Positive
    first: Count
    last: Count


class Program(_Record, frozen=True):
    """A static schedule. `rows` sequence positions per replay; 0 for a model without a sequence."""

    rows: Count
    steps: list[Dispatch | Copy]
    inputs: list[Port] = []
    outputs: list[Port] = []
    lifetimes: list[Lifetime] = []


class Adapter(_Record, frozen=True):
    """The GPU that a variant was tuned for: the vendor as WebGPU names it, and the device where it is known.

    A browser names no device: there the vendor decides.
    """

    vendor: Name
    device: str = ""


class Variant(_Record, frozen=True):
    """One shader set over the shared weights: which WebGPU features and limits it needs, and its programs.

    `limits` has WebGPU's names with dashes (max-buffer-size for maxBufferSize); a limit that it does not name
    is the specification's default. One with an `adapter` is left out on others.

    A decoder has `decode` (rows 1) and one or more `prefill_N` (rows N), which give `logits` [1, 1, vocab];
    with `all_logits` also `logits_N`, which give [1, N, vocab]. A graph has `run`.
    """

    name: Name
    features: list[Literal["shader-f16", "subgroups"]]
    limits: dict[Name, Count]
    programs: dict[Name, Program]
    adapter: Adapter | None = None


class Manifest(_Record, frozen=True):
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
