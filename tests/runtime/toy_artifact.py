"""Artifacts written by hand: small programs that keep every promise the compiler's keep, and no compiler.

The decoder's arithmetic can be done in one's head, and depends on the whole cache: position p of the KV cache
holds 7·token + p, and the next token is the sum of the cache modulo the vocabulary (`next_token`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from webgpu_compile.runtime.schema import VERSION

BLOCK = 4096
HEADS, HEAD_SIZE = 2, 2
WORDS = {
    name: index
    for index, name in enumerate(
        (
            "past_length",
            "length",
            "total_length",
            "call_length",
            "n_tokens",
            "limit",
            "stop",
            "n_stop_tokens",
            "stop_tokens",
        )
    )
}
MAX_STOP_TOKENS = 4


def next_token(tokens: Sequence[int], vocab_size: int) -> int:
    """What the toy decoder samples after `tokens`."""
    return sum(7 * token + position for position, token in enumerate(tokens)) % vocab_size


def greedy(prompt: Sequence[int], n: int, vocab_size: int, stop: Sequence[int] = ()) -> list[int]:
    """The next `n` tokens of the toy decoder in plain Python, up to a stop token."""
    tokens = list(prompt)
    for _ in range(n):
        token = next_token(tokens, vocab_size)
        if token in stop:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


class Writer:
    """Collects the parts of an artifact and writes its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shaders").mkdir(parents=True)
        (folder / "weights").mkdir()
        self.buffers: list[dict[str, Any]] = []
        self.shards: list[dict[str, Any]] = []
        self.modules: dict[str, str] = {}
        self.shaders: list[dict[str, Any]] = []
        self.by_file: dict[str, int] = {}

    def buffer(self, name: str, nbytes: int, kind: str, **more: Any) -> int:
        self.buffers.append({"name": name, "nbytes": -(-nbytes // 4) * 4, "kind": kind, **more})
        return len(self.buffers) - 1

    def shader(self, file: str, source: str, access: str, **more: Any) -> int:
        """A shader by file name; the same one is written once."""
        if file in self.by_file:
            return self.by_file[file]
        (self.folder / "shaders" / file).write_text(source)
        self.modules[file] = hashlib.sha256(source.encode()).hexdigest()
        self.shaders.append({"file": file, "workgroup": [1, 1, 1], "access": access, **more})
        self.by_file[file] = len(self.shaders) - 1
        return self.by_file[file]

    def shard(self, file: str, tensors: dict[str, np.ndarray]) -> int:
        """A safetensors file and its buffer; returns the buffer. Gaps are declared as padding."""
        kinds = {"float32": "F32", "int32": "I32", "uint32": "U32", "float16": "F16", "uint8": "U8"}
        header: dict[str, Any] = {}
        data = b""
        for name, array in tensors.items():
            dtype = kinds[str(array.dtype)]
            end = len(data) + array.nbytes
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), end]}
            data += array.tobytes()
            if gap := -len(data) % 256:
                end = len(data) + gap
                offsets = [len(data), end]
                header[f".padding.{len(data)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
                data += bytes(gap)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 256)
        whole = len(text).to_bytes(8, "little") + text + data
        (self.folder / "weights" / file).write_bytes(whole)
        buffer = self.buffer(file, len(data), "weights")
        blocks = [hashlib.sha256(whole[i : i + BLOCK]).hexdigest() for i in range(0, len(whole), BLOCK)]
        entry = {"file": file, "nbytes": len(whole), "data_offset": 8 + len(text), "buffer": buffer}
        self.shards.append({**entry, "block_nbytes": BLOCK, "blocks": blocks})
        return buffer

    def bind(self, *indices: int) -> list[list[int]]:
        """Whole buffers as bindings."""
        return [[index, 0, self.buffers[index]["nbytes"]] for index in indices]

    def finish(
        self,
        model: dict[str, Any],
        programs: dict[str, Any],
        variants: Sequence[dict[str, Any]],
        **more: Any,
    ) -> Path:
        """Write the manifest and the details. The steps of `programs` are spelled out; they get numbers."""
        kernels: list[tuple[str, list[Any]]] = []
        ranges: list[list[int]] = []

        def step(spelled: dict[str, Any]) -> list[int] | dict[str, int]:
            if "source" in spelled:
                return {side: number(ranges, spelled[side]) for side in ("source", "target")}
            grid = spelled["grid"]
            launch = [spelled["shader"], grid if len(grid) == 3 else number(ranges, [*grid, 12])]
            bindings = [number(ranges, bound) for bound in spelled["bindings"]]
            return [number(kernels, (spelled["kernel"], launch)), *bindings]

        details: dict[str, Any] = {"format": "webgpu-compile details", "version": VERSION}
        details |= {"graph": {}, "programs": {}, "weights": {}}
        numbered = {}
        for name, program in programs.items():
            steps = program["steps"]
            numbered[name] = program | {"steps": [step(each) for each in steps]}
            details["programs"][name] = {"steps": [each.get("details", {}) for each in steps]}
        manifest = {
            "format": "webgpu-compile",
            "version": VERSION,
            "producer": "tests",
            "model": model,
            "buffers": self.buffers,
            "shards": self.shards,
            "modules": self.modules,
            "shaders": self.shaders,
            "kernels": [name for name, _ in kernels],
            "ranges": ranges,
            "programs": numbered,
            "variants": [{**each, "launches": [launch for _, launch in kernels]} for each in variants],
            "files": {},
            **more,
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        write_details(self.folder, details)
        return self.folder


def number(table: list[Any], entry: Any) -> int:
    """The place of `entry` in `table`, where it is put if it is not there."""
    if entry not in table:
        table.append(entry)
    return table.index(entry)


def write_details(folder: Path, details: dict[str, Any]) -> None:
    """details.json, and its hash in the manifest."""
    data = json.dumps(details).encode()
    (folder / "details.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda m: m["files"].update({"details.json": digest}))


def edit_details(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the details after `change` has been at them."""
    details = json.loads((folder / "details.json").read_bytes())
    change(details)
    write_details(folder, details)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest after `change` has been at it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


AXPB = """\
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < 100u) {
    y[id.x] = a[id.x] * x[id.x] + b[0];
  }
}
"""


def build_graph(folder: Path) -> Path:
    """y = a·x + b for 100 values: f16 in and out for the caller, f32 on the GPU; `z` is a copy of y."""
    writer = Writer(folder)
    a = np.arange(100, dtype=np.float32)
    weights = writer.shard("model-00001.safetensors", {"a": a, "b": np.array([0.5], np.float32)})
    x = writer.buffer("x", 400, "input")
    y = writer.buffer("y", 400, "output")
    z = writer.buffer("z", 400, "output")
    shader = writer.shader("axpb.wgsl", AXPB, "rrrw", workgroup=[64, 1, 1])
    bindings = [[weights, 0, 400], [weights, 512, 4], *writer.bind(x, y)]
    port = {"dtype": "float16", "shape": [100], "storage": "f32", "nbytes": 400}
    inputs = [{**port, "name": "x", "buffer": x}]
    outputs = [{**port, "name": "y", "buffer": y}, {**port, "name": "z", "buffer": z, "dtype": "float32"}]
    details = {"nodes": ["/Mul", "/[bold]Add"], "reads": 804, "writes": 400, "work": 100}
    steps = [
        {"kernel": "axpb", "shader": shader, "bindings": bindings, "grid": [2, 1, 1], "details": details},
        {"source": [y, 0, 400], "target": [z, 0, 400]},
    ]
    program = {"rows": 0, "steps": steps, "inputs": inputs, "outputs": outputs}
    model: dict[str, Any] = {"name": "axpb", "kind": "graph"}
    for side in ("inputs", "outputs"):
        model[side] = [{key: port[key] for key in ("name", "dtype", "shape")} for port in program[side]]
    variants = [{"name": "portable", "features": [], "limits": {}}]
    return writer.finish(model, {"run": program}, variants)


STATE = """\
struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32,
  n_tokens: u32, limit: u32, stop: u32, n_stop_tokens: u32,
  stop_tokens: array<u32, 4>,
}
"""

BEGIN = """\
@group(0) @binding(0) var<storage, read_write> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> grid: array<u32>;

@compute @workgroup_size(1)
fn main() {
  if (sequence.stop != 0u) {
    return;
  }
  if (ROWSu > 1u) {
    sequence.length = min(ROWSu, sequence.n_tokens - sequence.past_length);
    sequence.total_length = sequence.past_length + sequence.length;
    sequence.call_length = sequence.n_tokens;
  }
  grid[0] = sequence.length;
  grid[1] = 1u;
  grid[2] = 1u;
}
"""

APPEND = """\
@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> table: array<i32>;
@group(0) @binding(3) var<storage, read_write> cache: array<f32>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) id: vec3u) {
  if (sequence.stop != 0u || id.x >= sequence.length) {
    return;
  }
  let position = sequence.past_length + id.x;
  let value = f32(table[tokens[position]]) + f32(position);
  for (var head = 0u; head < 2u; head++) {
    for (var i = 0u; i < 2u; i++) {
      cache[(head * CAPACITYu + position) * 2u + i] = value + f32(head * 2u + i) * 1000.0;
    }
  }
}
"""

LOGITS = """\
@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> cache: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) id: vec3u) {
  if (sequence.stop != 0u || id.x >= sequence.length) {
    return;
  }
  let position = select(sequence.total_length - 1u, sequence.past_length + id.x, EVERYu == 1u);
  var sum = 0.0;
  for (var p = 0u; p <= position; p++) {
    sum += cache[p * 2u];
  }
  let best = u32(sum) % VOCABu;
  for (var v = 0u; v < VOCABu; v++) {
    logits[id.x * VOCABu + v] = select(-f32(v) - 1.0, 0.5, v == best);
  }
}
"""

ADVANCE = """\
@group(0) @binding(0) var<storage, read_write> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;

fn sample() {
  var best = 0u;
  for (var v = 1u; v < VOCABu; v++) {
    if (logits[v] > logits[best]) {
      best = v;
    }
  }
  for (var i = 0u; i < sequence.n_stop_tokens; i++) {
    if (sequence.stop_tokens[i] == best) {
      sequence.stop = 1u;
      return;
    }
  }
  tokens[sequence.n_tokens] = i32(best);
  sequence.n_tokens += 1u;
  if (sequence.n_tokens == sequence.limit) {
    sequence.stop = 2u;
  }
}

@compute @workgroup_size(1)
fn main() {
  if (sequence.stop != 0u) {
    return;
  }
  sequence.past_length = sequence.total_length;
  if (SAMPLEu == 1u && sequence.past_length == sequence.n_tokens) {
    sample();
    sequence.length = 1u;
    sequence.total_length = sequence.past_length + 1u;
    sequence.call_length = sequence.total_length;
  }
}
"""

HOST_SAMPLE = """\
@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;

@compute @workgroup_size(1)
fn main() {
  var best = 0u;
  for (var v = 1u; v < VOCABu; v++) {
    if (logits[v] > logits[best]) {
      best = v;
    }
  }
  tokens[sequence.n_tokens] = i32(best);
}
"""


class _Decoder:
    """Writes the programs of a toy decoder."""

    def __init__(self, folder: Path, capacity: int, vocab_size: int, rows: int) -> None:
        self.writer = writer = Writer(folder)
        self.constants = {"CAPACITY": capacity, "VOCAB": vocab_size}
        table = np.zeros(4096, np.int32)
        table[:vocab_size] = 7 * np.arange(vocab_size)
        self.table = writer.shard("model-00001.safetensors", {"table": table})
        self.sequence = writer.buffer("sequence", 4 * (len(WORDS) - 1 + MAX_STOP_TOKENS), "state")
        self.tokens = writer.buffer("tokens", 4 * (capacity + 1), "state")
        self.cache = writer.buffer("cache", 4 * HEADS * capacity * HEAD_SIZE, "state")
        self.grid = writer.buffer("grid", 12, "activation", indirect=True)
        self.logits = writer.buffer("logits", 4 * vocab_size * rows, "output")

    def kernel(self, name: str, source: str, access: str, *buffers: int, **constants: int) -> dict[str, Any]:
        for key, value in {**self.constants, **constants}.items():
            source = source.replace(f"{key}u", f"{value}u")
        file = "_".join([name, *map(str, constants.values())]) + ".wgsl"
        shader = self.writer.shader(file, STATE + source, access)
        return {"kernel": name, "shader": shader, "bindings": self.writer.bind(*buffers), "grid": [1, 1, 1]}

    def program(
        self, rows: int, *, every: bool, host: bool, indirect: bool, vocab_size: int
    ) -> dict[str, Any]:
        s, t, c, g, y = self.sequence, self.tokens, self.cache, self.grid, self.logits
        append = self.kernel("append", APPEND, "rrrw", s, t, self.table, c)
        append["grid"] = [g, 0] if indirect else [rows, 1, 1]
        logits = self.kernel("logits", LOGITS, "rrw", s, c, y, EVERY=int(every))
        logits["grid"] = [rows if every else 1, 1, 1]
        steps = [append, logits]
        if host:
            steps.append(self.kernel("sample", HOST_SAMPLE, "rwr", s, t, y))
        else:
            steps.insert(0, self.kernel("begin", BEGIN, "ww", s, g, ROWS=rows))
            steps.append(self.kernel("advance", ADVANCE, "wwr", s, t, y, SAMPLE=int(not every)))
        shape = [1, rows if every else 1, vocab_size]
        port = {"name": "logits", "dtype": "float16", "shape": shape, "storage": "f32", "buffer": y}
        outputs = [{**port, "nbytes": 4 * vocab_size * shape[1]}]
        if rows == 1:
            shape = [1, HEADS, self.constants["CAPACITY"], HEAD_SIZE]
            port = {
                "name": "present.0.key",
                "dtype": "float16",
                "shape": shape,
                "storage": "f32",
                "buffer": c,
            }
            outputs.append({**port, "nbytes": self.writer.buffers[c]["nbytes"]})
        return {"rows": rows, "steps": steps, "outputs": outputs}


def build_decoder(
    folder: Path,
    *,
    capacity: int = 40,
    vocab_size: int = 53,
    chunks: Sequence[int] = (4, 16),
    stop_tokens: Sequence[int] = (),
    all_logits: bool = True,
    driven_by: str = "gpu",
    indirect: bool = False,
    variants: Sequence[dict[str, Any]] = ({"name": "portable", "features": [], "limits": {}},),
) -> Path:
    """A decoder that samples `next_token`; all variants have the same programs."""
    toy = _Decoder(folder, capacity, vocab_size, max(chunks))
    kind: dict[str, Any] = {"host": driven_by == "host", "indirect": indirect, "vocab_size": vocab_size}
    programs = {"decode": toy.program(1, every=False, **kind)}
    programs |= {f"prefill_{n}": toy.program(n, every=False, **kind) for n in chunks}
    if all_logits:
        programs |= {f"logits_{n}": toy.program(n, every=True, **kind) for n in chunks}
    ids = {"dtype": "int64"}
    past = ["batch_size", HEADS, "past_sequence_length", "kv_cache_dim"]
    present = ["batch_size", HEADS, "total_sequence_length", "kv_cache_dim"]
    cache = {"dtype": "float16"}
    logits = ["batch_size", "sequence_length", vocab_size]
    model = {
        "name": "toy",
        "kind": "decoder",
        "inputs": [
            {**ids, "name": "input_ids", "shape": ["batch_size", "sequence_length"]},
            {**ids, "name": "attention_mask", "shape": ["batch_size", "total_sequence_length"]},
            {**cache, "name": "past_key_values.0.key", "shape": past},
        ],
        "outputs": [
            {"name": "logits", "dtype": "float16", "shape": logits},
            {**cache, "name": "present.0.key", "shape": present},
        ],
    }
    sequence = {
        "buffer": toy.sequence,
        "tokens": toy.tokens,
        "words": WORDS,
        "capacity": capacity,
        "vocab_size": vocab_size,
        "max_stop_tokens": MAX_STOP_TOKENS,
        "stop_tokens": list(stop_tokens),
        "driven_by": driven_by,
        "all_logits": all_logits,
        "ids": "input_ids",
        "logits": "logits",
        "mask": "attention_mask",
    }
    return toy.writer.finish(model, programs, variants, sequence=sequence)
