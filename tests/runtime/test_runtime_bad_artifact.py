"""Artifacts that were damaged or made to harm: one sentence each, and nothing reaches the GPU."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
from toy_artifact import BLOCK, build_decoder, build_graph, edit_manifest
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.shards import load_shards

SHARD = "model-00001.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build_decoder(tmp_path_factory.mktemp("toy") / "out", indirect=True)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "out")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return build_graph(tmp_path_factory.mktemp("graph") / "out")


def failure(folder) -> RuntimeFailure:
    with pytest.raises(RuntimeFailure) as caught:
        load(folder)
    sentence = str(caught.value).splitlines()[0]
    assert sentence.endswith(".")
    assert caught.value.problem
    assert caught.value.hint
    return caught.value


def rewrite_shard(folder, change, *, header=None):
    """Change a shard's bytes and give it hashes that fit, as an attacker would."""
    path = folder / "weights" / SHARD
    data = bytearray(path.read_bytes())
    if header is not None:
        size = int.from_bytes(data[:8], "little")
        text = json.dumps(header(json.loads(data[8 : 8 + size]))).encode()
        assert len(text) <= size
        data[8 : 8 + size] = text + b" " * (size - len(text))
    data = change(data)
    path.write_bytes(data)
    hashes = [hashlib.sha256(data[i : i + BLOCK]).hexdigest() for i in range(0, len(data), BLOCK)]
    edit_manifest(folder, lambda m: m["shards"][0].update(blocks=hashes))


def test_the_original_is_fine(folder):
    load(folder).close()


@pytest.mark.parametrize("at", [0, 9, 300, BLOCK - 1, BLOCK, 3 * BLOCK + 5, -1])
def test_a_changed_byte_of_a_shard(folder, at):
    path = folder / "weights" / SHARD
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    error = failure(folder)
    assert error.subject == f"weights/{SHARD}"
    if at not in (0, 9):  # there the header breaks first
        number = at % len(data) // BLOCK
        assert error.problem == f"was changed after it was compiled (block {number} has another hash)"


def test_changed_weights_are_not_uploaded(folder):
    path = folder / "weights" / SHARD
    data = bytearray(path.read_bytes())
    data[2 * BLOCK] ^= 1
    path.write_bytes(data)
    artifact = open_artifact(folder)
    uploaded = []
    with pytest.raises(RuntimeFailure):
        load_shards(artifact, {0}, lambda buffer, offset, block: uploaded.append((offset, len(block))))
    assert sum(n for _, n in uploaded) == 2 * BLOCK - artifact.manifest.shards[0].data_offset


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_shard_of_another_size(folder, extra):
    path = folder / "weights" / SHARD
    data = path.read_bytes()
    path.write_bytes(data[:-1] if extra < 0 else data + b"\0")
    assert failure(folder).problem == f"has {len(data) + extra} bytes, not {len(data)}"


def test_a_missing_shard(folder):
    (folder / "weights" / SHARD).unlink()
    assert str(failure(folder)).startswith(f"weights/{SHARD}: is missing from the artifact")


def test_a_shard_behind_a_link_outside(folder, tmp_path):
    path = folder / "weights" / SHARD
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert failure(folder).problem == "is a link out of the artifact's folder"
    path.unlink()
    (tmp_path / "elsewhere").rename(folder / "weights" / "blob")
    path.symlink_to(folder / "weights" / "blob")
    load(folder).close()  # a link inside is fine: download caches use them


def test_a_shard_that_is_not_a_file(folder):
    path = folder / "weights" / SHARD
    path.unlink()
    os.mkfifo(path)
    assert failure(folder).problem == "is not a regular file"


HEADERS = {
    "hole": (lambda h: {k: v for k, v in h.items() if not k.startswith(".padding")}, "bytes behind its last"),
    "unknown": (
        lambda h: {**h, "x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        "that the manifest lacks",
    ),
    "overlap": (
        lambda h: {**h, ".padding.0": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
        "an overlap at|a hole before",
    ),
    "shape": (lambda h: {**h, "table": {**h["table"], "shape": [2048, 2]}}, "disagree about 'table'"),
    "size": (lambda h: {**h, "table": {**h["table"], "shape": [1]}}, "malformed entry for 'table'"),
    "negative": (lambda h: {**h, "table": {**h["table"], "shape": [-4096]}}, "malformed entry"),
    "huge": (lambda h: {**h, "table": {**h["table"], "data_offsets": [0, 2**70]}}, "malformed entry"),
    "missing": (lambda h: {"other": h["table"]}, "that the manifest lacks"),
    "list": (lambda h: [], "has no safetensors header"),
    "metadata": (lambda h: {**h, "__metadata__": {"a": 1}}, "malformed metadata"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(tmp_path, case):
    folder = build_decoder(tmp_path / "out")
    change, message = HEADERS[case]
    if case == "hole":  # of the graph, whose tensors need padding
        folder = build_graph(tmp_path / "graph")
        message = "a hole before"
    rewrite_shard(folder, lambda data: data, header=change)
    error = failure(folder)
    assert error.subject == f"weights/{SHARD}"
    assert any(part in error.problem for part in message.split("|"))


def test_a_header_with_a_duplicate_key(folder):
    def change(data):
        size = int.from_bytes(data[:8], "little")
        text = bytes(data[8 : 8 + size]).rstrip()
        double = text[:-1] + b"," + text[1:]
        assert len(double) <= size
        return data[:8] + double.ljust(size) + data[8 + size :]

    rewrite_shard(folder, change)
    assert failure(folder).problem == "has the key 'table' twice in one object"


def test_a_changed_shader(folder):
    path = next((folder / "shaders").iterdir())
    path.write_text(path.read_text() + "\n")
    error = failure(folder)
    assert error.subject.startswith("shaders/")
    assert "its hash differs" in error.problem


def forge_shader(folder, old: str, new: str, file="append.wgsl"):
    path = folder / "shaders" / file
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(folder, lambda m: [s.update(sha256=digest) for s in m["shaders"] if s["file"] == file])


def test_a_shader_that_does_not_compile_shows_the_line(folder):
    forge_shader(folder, "let value = ", "let value = undefined_thing + ")
    error = failure(folder)
    assert error.subject == "shaders/append.wgsl"
    assert "undefined_thing" in error.problem
    assert "does not compile on this device" in error.problem
    (line,) = [line for line in error.detail.splitlines() if line.startswith(">")]
    number, _, text = line[1:].partition("|")
    source = (folder / "shaders" / "append.wgsl").read_text().splitlines()
    assert source[int(number) - 1] == text[1:]
    assert "undefined_thing" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("var<storage, read> tokens", "var<storage, read_write> tokens"),  # not the access of the manifest
        ("@binding(3)", "@binding(4)"),
        ("fn main(", "fn other("),
        ("@workgroup_size(1)", "@workgroup_size(257)"),
    ],
)
def test_a_shader_that_does_not_fit_its_manifest(folder, old, new):
    forge_shader(folder, old, new)
    assert failure(folder).subject == "shaders/append.wgsl"


@pytest.mark.parametrize("text", ["let x = " + "(" * 5000, "let x = 1" + "+1" * 9000, "// \0"])
def test_a_shader_that_would_crash_the_compiler(folder, text):
    forge_shader(folder, "let value = ", text + ";\nlet value = ")
    assert failure(folder).subject == "append.wgsl"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is damaged or cut short"),
        (b"{}", "was not written by webgpu-compile"),
        (b"[]", "was not written by webgpu-compile"),
        (b'{"name": "a web app"}', "was not written by webgpu-compile"),
        (b'{"format": "webgpu-compile", "version": 2}', "has schema version 2, newer than 1"),
        (b'{"format": "webgpu-compile", "version": 0}', "has schema version 0, not 1"),
        (b'{"format": "webgpu-compile", "version": true}', "breaks the schema"),
        (b'{"format": "webgpu-compile"}', "has schema version None, not 1"),
        (b'{"format": "webgpu-compile", "format": "webgpu-compile"}', "has the key 'format' twice"),
        (b'{"format": "webgpu-compile", "version": 1}', "breaks the schema: Object missing required field"),
        (b'{"format": NaN}', "is damaged or cut short"),
        (b'{"format": "\xff"}', "is damaged or cut short"),
        (b"[" * 100_000, "is damaged or cut short"),
        (b"1" * 10_000, "is damaged or cut short"),
    ],
)
def test_a_manifest_that_is_not_one(folder, data, problem):
    (folder / "manifest.json").write_bytes(data)
    error = failure(folder)
    assert error.subject == "manifest.json"
    assert error.problem.startswith(problem)


def test_a_truncated_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])
    assert failure(folder).problem.startswith("is damaged or cut short")


def test_not_a_folder(tmp_path):
    assert "does not exist" in str(failure(tmp_path / "nothing"))
    (tmp_path / "file").write_text("")
    assert "is not a folder" in str(failure(tmp_path / "file"))
    assert "has no manifest.json" in str(failure(tmp_path))


def step(manifest, kernel, program="decode"):
    steps = manifest["variants"][0]["programs"][program]["steps"]
    return next(step for step in steps if step.get("kernel") == kernel)


def buffer(manifest, name):
    return next(buffer for buffer in manifest["buffers"] if buffer["name"] == name)


LIES = {
    "unknown field": (lambda m: m.update(extra=1), "unknown field `extra`"),
    "file name": (lambda m: m["shards"][0].update(file="../secret"), "regex"),
    "absolute": (lambda m: m["shaders"][0].update(file="/etc/passwd"), "regex"),
    "same buffer names": (lambda m: m["buffers"][1].update(name="tokens"), "two buffers have the same name"),
    "same shader": (
        lambda m: m["shaders"][0].update(file=m["shaders"][1]["file"].upper()),
        "two shaders have the same name",
    ),
    "odd buffer": (lambda m: buffer(m, "cache").update(nbytes=641), "is not a multiple of 4"),
    "shard size": (lambda m: m["shards"][0].update(nbytes=10**12), "differ in size"),
    "no hashes": (lambda m: m["shards"][0]["blocks"].pop(), "too many or too few hashes"),
    "tiny blocks": (lambda m: m["shards"][0].update(block_nbytes=4), "has blocks of 4 bytes"),
    "data offset": (lambda m: m["shards"][0].update(data_offset=8), "the data of shard"),
    "shard in state": (lambda m: m["shards"][0].update(buffer=1), "is not for weights"),
    "weights without shard": (lambda m: m.update(shards=[], weights=[]), "no shard fills buffer"),
    "weight offset": (lambda m: m["weights"][0].update(offset=256), "ends behind its shard"),
    "weight overflow": (lambda m: m["weights"][0].update(offset=2**53 - 256), "ends behind its shard"),
    "weight shape": (lambda m: m["weights"][0].update(shape=[2**26, 2**27]), "does not give its size"),
    "weight twice": (
        lambda m: m["weights"].append({**m["weights"][0], "name": "again"}),
        "overlaps another",
    ),
    "binding out of range": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [3, 0, 644]),
        "program 'decode' of variant 'portable', step 1 (append): binds a range outside of 'cache'",
    ),
    "binding overflow": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [3, 2**53 - 256, 256]),
        "binds a range outside",
    ),
    "binding unaligned": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [3, 128, 4]),
        "at an offset that is not a multiple of 256",
    ),
    "binding size": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [3, 0, 5]),
        "a size of 'cache' that is not a multiple of 4",
    ),
    "binding to nothing": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [99, 0, 4]),
        "uses a buffer that does not exist",
    ),
    "binding count": (
        lambda m: step(m, "append")["bindings"].pop(),
        "binds 3 buffers where its shader has 4",
    ),
    "read and write": (
        lambda m: step(m, "append")["bindings"].__setitem__(1, [3, 0, 4]),
        "reads and writes 'cache' through different bindings",
    ),
    "overlapping writes": (
        lambda m: step(m, "begin")["bindings"].__setitem__(1, [1, 0, 4]),
        "binds overlapping ranges of 'sequence' for writing",
    ),
    "write weights": (
        lambda m: step(m, "append")["bindings"].__setitem__(3, [0, 0, 4]),
        "writes the weights|reads and writes",
    ),
    "no grid": (lambda m: step(m, "logits").pop("grid"), "must have a grid or an indirect grid"),
    "zero grid": (lambda m: step(m, "logits").update(grid=[0, 1, 1]), "breaks the schema"),
    "indirect unmarked": (
        lambda m: step(m, "append").update(indirect=[3, 0]),
        "which it writes|not marked indirect",
    ),
    "indirect outside": (lambda m: step(m, "append").update(indirect=[4, 4]), "takes its grid from outside"),
    "shader index": (lambda m: step(m, "logits").update(shader=99), "has a shader that does not exist"),
    "workgroup": (lambda m: m["shaders"][0].update(workgroup=[256, 2, 1]), "has a workgroup of 512"),
    "limit name": (lambda m: m["variants"][0].update(limits={"max-fun": 1}), "the unknown limit 'max-fun'"),
    "feature name": (lambda m: m["variants"][0].update(features=["timestamp-query"]), "Invalid enum value"),
    "shader feature": (
        lambda m: m["shaders"][0].update(features=["subgroups"]),
        "a feature that its variant does not name",
    ),
    "no decode": (lambda m: m["variants"][0]["programs"].pop("decode"), "has no program 'decode'"),
    "cannot sample": (
        lambda m: m["variants"][0]["programs"].update(decode_sampled=m["variants"][0]["programs"]["decode"]),
        "'decode_sampled' and the words disagree",
    ),
    "other program": (
        lambda m: m["variants"][0]["programs"].update(prefill_5=m["variants"][0]["programs"]["prefill_4"]),
        "has the unknown program 'prefill_5'",
    ),
    "no logits": (
        lambda m: m["variants"][0]["programs"]["decode"].pop("outputs"),
        "'decode' does not give logits",
    ),
    "no words": (lambda m: m["sequence"]["words"].pop("stop"), "lacks the word 'stop'"),
    "same words": (lambda m: m["sequence"]["words"].update(stop=0), "two words of the sequence are the same"),
    "words outside": (lambda m: m["sequence"]["words"].update(stop=4000), "too small for its words"),
    "many stop tokens": (lambda m: m["sequence"].update(max_stop_tokens=2**53), "too small for its words"),
    "no ids": (lambda m: m["model"]["inputs"].pop(0), "a decoder has no input_ids"),
    "no logits port": (lambda m: m["model"]["outputs"].pop(0), "a decoder has no logits"),
    "capacity": (lambda m: m["sequence"].update(capacity=41), "the token buffer is too small"),
    "no sequence": (lambda m: m.pop("sequence"), "a decoder has a sequence"),
    "all logits": (lambda m: m["sequence"].update(all_logits=False), "'logits_N' and all_logits disagree"),
    "port": (
        lambda m: m["variants"][0]["programs"]["decode"]["outputs"][0].update(nbytes=10**6),
        "does not give its size",
    ),
    "big buffer": (
        lambda m: buffer(m, "cache").update(nbytes=1 << 40),
        "larger than variant 'portable' asks for",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_manifest_that_lies(folder, case):
    change, message = LIES[case]
    edit_manifest(folder, change)
    error = failure(folder)
    assert error.subject == "manifest.json"
    assert any(part in error.problem for part in message.split("|")), error.problem


COPIES = {
    "itself": ({"target": 2}, "copies within one buffer"),
    "outside": ({"nbytes": 404}, "copies a range outside its buffer"),
    "odd": ({"source_offset": 2}, "not a multiple of 4"),
    "weights": ({"target": 0}, "writes weights"),
    "nothing": ({"target": 77}, "does not exist"),
    "overflow": ({"source_offset": 2**53 - 4}, "copies a range outside"),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_copy_that_lies(graph, tmp_path, case):
    folder = shutil.copytree(graph, tmp_path / "out")
    change, message = COPIES[case]
    edit_manifest(folder, lambda m: m["variants"][0]["programs"]["run"]["steps"][1].update(change))
    assert message in failure(folder).problem


def test_a_graph_whose_program_has_other_ports(graph, tmp_path):
    folder = shutil.copytree(graph, tmp_path / "out")
    edit_manifest(folder, lambda m: m["variants"][0]["programs"]["run"]["outputs"].pop())
    assert "'run' has not the model's ports" in failure(folder).problem


def test_a_binding_smaller_than_the_shader_needs_fails_at_load(folder):
    edit_manifest(folder, lambda m: step(m, "begin")["bindings"].__setitem__(0, [1, 0, 4]))
    error = failure(folder)
    assert error.subject == "shaders/begin_1.wgsl"
    assert "`min_binding_size`, which is 4" in error.problem
    assert error.detail
