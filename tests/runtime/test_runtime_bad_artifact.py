"""Artifacts that were damaged or made to harm: one sentence each, and nothing reaches the GPU."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
from toy_artifact import BLOCK, build_decoder, build_graph, edit_details, edit_manifest
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.details import read_details
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
    "odd place": (
        lambda h: {**h, "x": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}},
        "at an odd place",
    ),
    "padding": (
        lambda h: {**h, ".padding.0": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        "which is no padding",
    ),
    "overlap": (
        lambda h: {**h, ".padding.0": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
        "an overlap at|a hole before",
    ),
    "size": (lambda h: {**h, "table": {**h["table"], "shape": [1]}}, "malformed entry for 'table'"),
    "negative": (lambda h: {**h, "table": {**h["table"], "shape": [-4096]}}, "malformed entry"),
    "huge": (lambda h: {**h, "table": {**h["table"], "data_offsets": [0, 2**70]}}, "malformed entry"),
    "empty": (lambda h: {}, "bytes behind its last"),
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
    edit_manifest(folder, lambda m: m["modules"].update({file: digest}))


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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"constants": {"OTHER": 1}}, "has no override 'OTHER'"),
        ({"constants": {"HEIGHT": -1}}, "does not compile on this device"),
        ({"constants": {"HEIGHT": 2**32}}, "does not compile on this device"),
        ({"entry": "other"}, "does not compile on this device"),
    ],
)
def test_pipelines_that_a_shader_cannot_be(folder, change, problem):
    forge_shader(folder, "@compute", "override HEIGHT: u32 = 1u;\n// override OTHER: u32;\n@compute")
    forge_shader(folder, "let value = ", "let height = HEIGHT;\nlet value = ")
    edit_manifest(folder, lambda m: [s.update(change) for s in m["shaders"] if s["file"] == "append.wgsl"])
    error = failure(folder)
    assert error.subject == "shaders/append.wgsl"
    assert problem in error.problem


@pytest.mark.parametrize("text", ["let x = " + "(" * 5000, "let x = 1" + "+1" * 9000, "// \0"])
def test_a_shader_that_would_crash_the_compiler(folder, text):
    forge_shader(folder, "let value = ", text + ";\nlet value = ")
    assert failure(folder).subject == "append.wgsl"


@pytest.mark.parametrize(
    "text", ["override B = A + 1u;", "const B = A;", "var<workgroup> b: array<u32, A * 2u>;  // b"]
)
def test_overrides_that_would_crash_the_compiler(folder, text):
    forge_shader(folder, "@compute", f"override A: u32 = 1u;\n{text}\n@compute")
    error = failure(folder)
    assert error.subject == "append.wgsl"
    assert "computes with overrides" in error.problem


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is damaged or cut short"),
        (b"{}", "was not written by webgpu-compile"),
        (b"[]", "was not written by webgpu-compile"),
        (b'{"name": "a web app"}', "was not written by webgpu-compile"),
        (b'{"format": "webgpu-compile", "version": 4}', "has schema version 4, newer than 3"),
        (b'{"format": "webgpu-compile", "version": 1}', "has schema version 1, not 3"),
        (b'{"format": "webgpu-compile", "version": 3.0}', "breaks the schema"),
        (b'{"format": "webgpu-compile"}', "has schema version None, not 3"),
        (b'{"format": "webgpu-compile", "format": "webgpu-compile"}', "has the key 'format' twice"),
        (b'{"format": "webgpu-compile", "version": 3}', "breaks the schema: Object missing required field"),
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
    """The first step of a program that runs `kernel`: [number of the kernel, ranges …]."""
    steps = manifest["programs"][program]["steps"]
    return next(step for step in steps if manifest["kernels"][step[0]] == kernel)


def bind(manifest, kernel, binding, bound):
    """Bind another range in `decode`."""
    manifest["ranges"].append(bound)
    step(manifest, kernel)[1 + binding] = len(manifest["ranges"]) - 1


def launch(manifest, kernel):
    """How the first variant runs `kernel` in `decode`: [shader, grid]."""
    return manifest["variants"][0]["launches"][step(manifest, kernel)[0]]


def indirect(manifest, bound):
    manifest["ranges"].append(bound)
    launch(manifest, "append")[1] = len(manifest["ranges"]) - 1


def buffer(manifest, name):
    return next(buffer for buffer in manifest["buffers"] if buffer["name"] == name)


LIES = {
    "unknown field": (lambda m: m.update(extra=1), "unknown field `extra`"),
    "file name": (lambda m: m["shards"][0].update(file="../secret"), "regex"),
    "absolute": (lambda m: m["shaders"][0].update(file="/etc/passwd"), "regex"),
    "same buffer names": (lambda m: m["buffers"][1].update(name="tokens"), "two buffers have the same name"),
    "same shader": (
        lambda m: m["modules"].update({m["shaders"][1]["file"].upper(): "0" * 64}),
        "two shader files have the same name",
    ),
    "no hash": (lambda m: m["modules"].pop(m["shaders"][0]["file"]), "has no hash"),
    "entry": (lambda m: m["shaders"][0].update(entry="main()"), "breaks the schema"),
    "constant": (lambda m: m["shaders"][0].update(constants={"a b": 1}), "breaks the schema"),
    "constant number": (lambda m: m["shaders"][0].update(constants={"A": 1e39}), "breaks the schema"),
    "constant kind": (lambda m: m["shaders"][0].update(constants={"A": "1"}), "breaks the schema"),
    "odd buffer": (lambda m: buffer(m, "cache").update(nbytes=641), "is not a multiple of 4"),
    "shard size": (lambda m: m["shards"][0].update(nbytes=10**12), "differ in size"),
    "no hashes": (lambda m: m["shards"][0]["blocks"].pop(), "too many or too few hashes"),
    "tiny blocks": (lambda m: m["shards"][0].update(block_nbytes=4), "has blocks of 4 bytes"),
    "data offset": (lambda m: m["shards"][0].update(data_offset=8), "the data of shard"),
    "shard in state": (lambda m: m["shards"][0].update(buffer=1), "is not for weights"),
    "weights without shard": (lambda m: m.update(shards=[]), "no shard fills buffer"),
    "range outside": (lambda m: bind(m, "append", 3, [3, 0, 644]), "is outside of 'cache'"),
    "range overflow": (lambda m: bind(m, "append", 3, [3, 2**53 - 256, 256]), "is outside of 'cache'"),
    "range odd": (lambda m: bind(m, "append", 3, [3, 0, 5]), "of 'cache' is not a multiple of 4"),
    "range of nothing": (lambda m: bind(m, "append", 3, [99, 0, 4]), "in a buffer that does not exist"),
    "unused range": (lambda m: m["ranges"].append([3, 640, 4]), "is outside of 'cache'"),
    "range index": (
        lambda m: step(m, "append").__setitem__(4, 999),
        "program 'decode' of variant 'portable', step 1: uses range 999, which does not exist",
    ),
    "kernel index": (
        lambda m: step(m, "append").__setitem__(0, 999),
        "a kernel that its variant does not have",
    ),
    "kernel of others": (
        lambda m: m["variants"][0]["launches"].__setitem__(0, None),
        "step 0: runs a kernel that its variant does not have",
    ),
    "launches": (
        lambda m: m["variants"][0]["launches"].pop(),
        "does not launch as many kernels as there are",
    ),
    "kernels": (lambda m: m["kernels"].append("x"), "does not launch as many kernels as there are"),
    "empty step": (lambda m: m["programs"]["decode"]["steps"].insert(0, []), "breaks the schema"),
    "binding unaligned": (
        lambda m: bind(m, "append", 3, [3, 128, 4]),
        "program 'decode' of variant 'portable', step 1 (append): "
        "binds 'cache' at an offset that is not a multiple of 256",
    ),
    "binding count": (lambda m: step(m, "append").pop(), "binds 3 buffers where its shader has 4"),
    "read and write": (
        lambda m: bind(m, "append", 1, [3, 0, 4]),
        "reads and writes 'cache' through different bindings",
    ),
    "overlapping writes": (
        lambda m: bind(m, "begin", 1, [1, 0, 4]),
        "binds overlapping ranges of 'sequence' for writing",
    ),
    "write weights": (
        lambda m: bind(m, "append", 3, [0, 0, 4]),
        "writes the weights|reads and writes",
    ),
    "no grid": (lambda m: launch(m, "logits").pop(), "breaks the schema"),
    "zero grid": (lambda m: launch(m, "logits").__setitem__(1, [0, 1, 1]), "breaks the schema"),
    "grid index": (lambda m: launch(m, "logits").__setitem__(1, 999), "uses range 999"),
    "indirect unmarked": (lambda m: indirect(m, [2, 0, 12]), "not marked indirect"),
    "indirect outside": (lambda m: indirect(m, [4, 4, 12]), "is outside of 'grid'"),
    "indirect size": (lambda m: indirect(m, [4, 0, 8]), "takes its grid from 8 bytes"),
    "shader index": (lambda m: launch(m, "logits").__setitem__(0, 99), "has a shader that does not exist"),
    "access": (lambda m: m["shaders"][0].update(access="rx"), "breaks the schema"),
    "workgroup": (lambda m: m["shaders"][0].update(workgroup=[256, 2, 1]), "has a workgroup of 512"),
    "limit name": (lambda m: m["variants"][0].update(limits={"max-fun": 1}), "the unknown limit 'max-fun'"),
    "feature name": (lambda m: m["variants"][0].update(features=["timestamp-query"]), "Invalid enum value"),
    "shader feature": (
        lambda m: m["shaders"][0].update(features=["subgroups"]),
        "a feature that its variant does not name",
    ),
    "no decode": (lambda m: m["programs"].pop("decode"), "has no program 'decode'"),
    "cannot sample": (
        lambda m: m["programs"].update(decode_sampled=m["programs"]["decode"]),
        "'decode_sampled' and the words disagree",
    ),
    "other program": (
        lambda m: m["programs"].update(prefill_5=m["programs"]["prefill_4"]),
        "has the unknown program 'prefill_5'",
    ),
    "other program of a variant": (
        lambda m: m["variants"][0].update(programs={"prefill_5": m["programs"]["prefill_4"]}),
        "has the unknown program 'prefill_5'",
    ),
    "no logits": (
        lambda m: m["programs"]["decode"].pop("outputs"),
        "'decode' does not give logits",
    ),
    "no words": (lambda m: m["sequence"]["words"].pop("stop"), "lacks the word 'stop'"),
    "same words": (lambda m: m["sequence"]["words"].update(stop=0), "two words of the sequence are the same"),
    "words outside": (lambda m: m["sequence"]["words"].update(stop=4000), "too small for its words"),
    "many stop tokens": (lambda m: m["sequence"].update(max_stop_tokens=2**53), "too small for its words"),
    "no ids": (lambda m: m["model"]["inputs"].pop(0), "the model has no input 'input_ids'"),
    "no mask": (lambda m: m["model"]["inputs"].pop(1), "the model has no such mask"),
    "no logits port": (lambda m: m["model"]["outputs"].pop(0), "the model has no output 'logits'"),
    "other logits": (lambda m: m["sequence"].update(logits="present.0.key"), "'decode' does not give logits"),
    "capacity": (lambda m: m["sequence"].update(capacity=41), "the token buffer is too small"),
    "no sequence": (lambda m: m.pop("sequence"), "a decoder has a sequence"),
    "all logits": (lambda m: m["sequence"].update(all_logits=False), "'logits_N' and all_logits disagree"),
    "port": (
        lambda m: m["programs"]["decode"]["outputs"][0].update(nbytes=10**6),
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
    "itself": ([2, 200, 4], [2, 0, 4], "copies within one buffer"),
    "outside": ([2, 0, 404], [3, 0, 404], "is outside of 'y'"),
    "odd": ([2, 2, 4], [3, 0, 4], "not a multiple of 4"),
    "weights": ([2, 0, 4], [0, 0, 4], "writes weights"),
    "nothing": ([77, 0, 4], [3, 0, 4], "does not exist"),
    "sizes": ([2, 0, 8], [3, 0, 4], "copies between ranges of different sizes"),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_copy_that_lies(graph, tmp_path, case):
    folder = shutil.copytree(graph, tmp_path / "out")
    source, target, message = COPIES[case]

    def change(manifest):
        manifest["ranges"] += [source, target]
        n = len(manifest["ranges"])
        manifest["programs"]["run"]["steps"][1] = {"source": n - 2, "target": n - 1}

    edit_manifest(folder, change)
    assert message in failure(folder).problem


def test_a_graph_whose_program_has_other_ports(graph, tmp_path):
    folder = shutil.copytree(graph, tmp_path / "out")
    edit_manifest(folder, lambda m: m["programs"]["run"]["outputs"].pop())
    assert "'run' has not the model's ports" in failure(folder).problem


def test_a_binding_smaller_than_the_shader_needs_fails_at_load(folder):
    edit_manifest(folder, lambda m: bind(m, "begin", 0, [1, 0, 4]))
    error = failure(folder)
    assert error.subject == "shaders/begin_1.wgsl"
    assert "`min_binding_size`, which is 4" in error.problem
    assert error.detail


DETAILS = {
    "format": (lambda d: d.update(format="x"), "breaks the schema"),
    "version": (lambda d: d.update(version=1), "has schema version 1, not 3"),
    "program": (lambda d: d["programs"].pop("decode"), "lacks the program 'decode'"),
    "steps": (lambda d: d["programs"]["decode"]["steps"].pop(), "does not fit the program 'decode'"),
    "lifetime": (
        lambda d: d["programs"]["decode"].update(lifetimes=[["x", 99, 4, 0, 1]]),
        "does not fit the program 'decode'",
    ),
    "step": (
        lambda d: d["programs"]["decode"].update(lifetimes=[["x", 1, 4, 0, 99]]),
        "does not fit the program 'decode'",
    ),
}


@pytest.mark.parametrize("case", DETAILS)
def test_details_that_lie(folder, case):
    change, message = DETAILS[case]
    edit_details(folder, change)
    with pytest.raises(RuntimeFailure) as caught:
        read_details(open_artifact(folder))
    assert caught.value.subject == "details.json"
    assert caught.value.problem.startswith(message)


def test_details_that_were_changed(folder):
    (folder / "details.json").write_text("{}")
    with pytest.raises(RuntimeFailure, match="was changed after it was compiled"):
        read_details(open_artifact(folder))
    (folder / "details.json").unlink()
    with pytest.raises(RuntimeFailure, match="is missing from the artifact"):
        read_details(open_artifact(folder))
    load(folder).close()  # which needs none
