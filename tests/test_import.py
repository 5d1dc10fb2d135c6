"""Importing: what is accepted, and that everything else ends in one sentence."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from webgpu_compile.compiler.errors import CompileError
from webgpu_compile.compiler.importer import load_model
from webgpu_compile.compiler.importer.config import read_config
from webgpu_compile.compiler.importer.external import ExternalValues, read, same_bytes, storage_key
from webgpu_compile.compiler.options import CompileOptions
from webgpu_compile.compiler.passes.front import front
from webgpu_compile.compiler.passes.runner import PassError
from webgpu_compile.models import preset, write_decoder

HEAD = '<ir_version: 10, opset_import: ["" : 22]>\n'
ADD = HEAD + "g (float[4] x) => (float[4] y) { y = Add (x, w) }"


def model_with_data(folder: Path, **fields: str) -> Path:
    """x + w with w in w.bin: [0, 1, 2, 3]; `fields` replace its external-data entries."""
    folder.mkdir(parents=True, exist_ok=True)
    np.arange(4, dtype=np.float32).tofile(folder / "w.bin")
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": "16", **fields}.items():
        weight.external_data.add(key=key, value=value)
    model = onnx.parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) <float[4] w> { y = Add (x, w) }")
    model.graph.initializer.append(weight)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CompileError) as caught:
        load_model(path, CompileOptions(**options))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_external_data_is_mapped_lazily(tmp_path: Path) -> None:
    graph = load_model(model_with_data(tmp_path), CompileOptions()).graph
    weight = graph.nodes[0].inputs[1]
    assert isinstance(weight._values, ExternalValues)
    assert read(weight).tolist() == [0, 1, 2, 3]
    assert not read(weight).flags.writeable
    assert isinstance(weight._values, ExternalValues)  # reading did not put the values onto the graph
    assert storage_key(weight) == "w"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "../w.bin"}, "tensor w: its external data '../w.bin' is outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "C:\\w.bin"}, "outside the model's folder"),
        ({"location": "a\\..\\..\\w.bin"}, "outside the model's folder"),
        ({"location": "w\0.bin"}, "has no usable file name"),
        ({"location": ""}, "has no usable file name"),
        (
            {"location": "v.bin"},
            "tensor w: its external data file 'v.bin' is missing; put it beside model.onnx",
        ),
        ({"location": "."}, "is missing"),
        ({"offset": "4"}, "its data end at byte 20, but w.bin has only 16; the file is cut short"),
        ({"offset": "-4"}, "its external offset or length is not a number"),
        ({"offset": "1e3"}, "its external offset or length is not a number"),
        ({"offset": "99999999999999999999"}, "its external offset or length is not a number"),
        ({"length": "12"}, "it has 12 bytes of external data, its shape [4] needs 16"),
    ],
)
def test_bad_external_data(fields: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))  # what '../w.bin' would reach
    assert message in refusal(model_with_data(tmp_path / "model", **fields))


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    """Out of the folder: refused. As Hugging Face's cache links model and data into blobs/: accepted."""
    path = model_with_data(tmp_path / "model")
    outside = tmp_path / "outside.bin"
    (tmp_path / "model" / "w.bin").rename(outside)
    (tmp_path / "model" / "w.bin").symlink_to(outside)
    assert "'w.bin' links out of the model's folder" in refusal(path)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    outside.rename(blobs / "1234")
    path.rename(blobs / "5678")
    (snapshot / "w.bin").symlink_to(blobs / "1234")
    (snapshot / "model.onnx").symlink_to(blobs / "5678")
    weight = load_model(snapshot / "model.onnx", CompileOptions()).graph.nodes[0].inputs[1]
    assert read(weight).tolist() == [0, 1, 2, 3]


def test_missing_data_is_fine_for_check(tmp_path: Path) -> None:
    path = model_with_data(tmp_path)
    (tmp_path / "w.bin").unlink()
    assert "is missing" in refusal(path)
    assert load_model(path, CompileOptions(check=True)).graph.nodes[0].inputs[1].shape == [4]


def test_truncated_data(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, preset("tiny-llama"))
    data = tmp_path / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)
    assert "the file is cut short, copy or export it again" in refusal(path)


@pytest.mark.parametrize(("offset", "good"), [(0, True), (16, True), (8, False)])
def test_overlaps(offset: int, good: bool, tmp_path: Path) -> None:
    """The same bytes under two names are an alias; other overlaps are damage."""
    path = model_with_data(tmp_path)
    np.arange(8, dtype=np.float32).tofile(tmp_path / "w.bin")
    model = onnx.load(path, load_external_data=False)
    other = onnx.TensorProto.FromString(model.graph.initializer[0].SerializeToString())
    other.name = "v"
    next(entry for entry in other.external_data if entry.key == "offset").value = str(offset)
    model.graph.initializer.append(other)
    model.graph.node[0].input[0] = "v"
    path.write_bytes(model.SerializeToString())
    if not good:
        assert "tensor v: its external data overlap those of w" in refusal(path)
        return
    v, w = load_model(path, CompileOptions()).graph.nodes[0].inputs
    assert same_bytes(v, w) == (offset == 0)
    assert read(v).tolist() == [offset / 4 + i for i in range(4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX model"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is not an ONNX model"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is not an ONNX model",
        ),
        (bytes(1000), "is not an ONNX model"),
        (b"\x08\x0a", "is not an ONNX model"),
    ],
)
def test_not_onnx(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert message in refusal(path)


def test_truncated_model(tmp_path: Path) -> None:
    whole = write_decoder(tmp_path, preset("tiny-llama"), weights=False)
    content = whole.read_bytes()
    for size in (1, 10, 100, len(content) // 2, len(content) - 1):
        whole.write_bytes(content[:size])
        assert "ONNX model" in refusal(whole, check=True)


def test_flipped_bits(tmp_path: Path) -> None:
    """Whatever the damage, it is accepted or ends in a sentence; nothing else escapes."""
    path = write_decoder(tmp_path, preset("tiny-qwen25"), weights=False)
    content = path.read_bytes()
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 2):
            damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        refused += not compiles(path)
    assert 100 < refused < 200


def compiles(path: Path) -> bool:
    """False for a refusal in one line; whatever else is raised escapes."""
    try:
        front(path, CompileOptions(check=True))
    except PassError:
        raise
    except CompileError as error:
        if "\n" in str(error):
            raise
        return False
    return True


def edited(tmp_path: Path, edit: Callable[[onnx.ModelProto], None], text: str = "") -> Path:
    model = onnx.parser.parse_model(text or HEAD + "g (float[4] x) => (float[4] y) { y = Neg (x) }")
    edit(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_too_new(tmp_path: Path) -> None:
    def opset(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    def format(model: onnx.ModelProto) -> None:
        model.ir_version = 99

    assert "model.onnx: uses opset 99, newer than 25; export it with opset 25" in refusal(
        edited(tmp_path, opset)
    )
    assert "model.onnx: has IR version 99, newer than 13" in refusal(edited(tmp_path, format))


def test_absurd_sizes(tmp_path: Path) -> None:
    """A few bytes that ask for terabytes, in every place where a size can stand."""

    def initializer(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[1 << 40]))

    def negative(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[-1]))

    def short(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[4], raw_data=b"1234"))

    def entry(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 50

    use_w = HEAD + "g (float[4] x) => (float[4] y) <float[4] w> { y = Add (x, w) }"
    assert "tensor w: its shape [1099511627776] needs 4 TiB" in refusal(edited(tmp_path, initializer, use_w))
    assert "a dimension of [-1] is negative" in refusal(edited(tmp_path, negative, use_w))
    assert "tensor w: it holds 4 bytes, its shape [4] needs 16" in refusal(edited(tmp_path, short, use_w))
    assert "value x: its shape [1125899906842624] needs 4.1e+03 TiB" in refusal(edited(tmp_path, entry))
    text = "g (float[1] x) => (float[4] y) { s = Constant <value_ints = [1099511627776]> () "
    path = edited(tmp_path, lambda model: None, HEAD + text + "z = ConstantOfShape (s) y = Add (x, z) }")
    with pytest.raises(CompileError, match=r"output 0 of ConstantOfShape node z: its shape .* needs 4 TiB"):
        front(path, CompileOptions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ y = Add (x, nowhere) }", "Add node y: it reads 'nowhere', which nothing before it writes"),
        ("{ a = Neg (x) a = Abs (x) y = Neg (a) }", "Abs node a: it writes 'a', which is written already"),
        ("{ a = Neg (x) }", "output y: no node writes it"),
        ("{ y = Neg (b) b = Abs (x) }", "Neg node y: it reads 'b', which nothing before it writes"),
    ],
)
def test_broken_graphs(text: str, message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, lambda model: None, HEAD + "g (float[4] x) => (float[4] y) " + text)
    assert message in refusal(path)


def test_text_tensors(tmp_path: Path) -> None:
    def text(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.STRING, [1], [b"hello"]))

    path = edited(tmp_path, text, HEAD + "g (float[4] x) => (float[4] y) <string[1] w> { y = Add (x, w) }")
    assert "tensor w: element type 8 is not supported" in refusal(path)


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 22, "other" : 1]>\n'
    text += "g (float[4] x) => (float[4] y) { y = other.Twice (x) }\n"
    text += '<domain: "other", opset_import: ["" : 22]> Twice (a) => (b) { b = Add (a, a) }'
    graph = load_model(edited(tmp_path, lambda model: None, text), CompileOptions()).graph
    assert [node.op for node in graph.nodes] == ["Add"]


def test_nodes_have_names_of_their_own(tmp_path: Path) -> None:
    text = HEAD + "g (float[4] x) => (float[4] y) { [n] a = Neg (x) [n] b = Abs (a) y = Neg (b) }"
    graph = load_model(edited(tmp_path, lambda model: None, text), CompileOptions()).graph
    assert [node.name for node in graph.nodes] == ["n", "n_2", "y"]


def test_folders(tmp_path: Path) -> None:
    assert "there is no such file or folder" in refusal(tmp_path / "nowhere")
    assert "the folder has no .onnx file" in refusal(tmp_path)
    model_with_data(tmp_path)
    assert load_model(tmp_path, CompileOptions()).file.name == "model.onnx"
    (tmp_path / "other.onnx").write_bytes(b"")
    assert "the folder has several models (model.onnx, other.onnx); name the file" in refusal(tmp_path)
    config = {"model": {"decoder": {"filename": "gone.onnx"}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    assert "genai_config.json names 'gone.onnx', which is missing" in refusal(tmp_path)
    config["model"]["decoder"]["filename"] = "../model.onnx"
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    assert "which is outside the folder" in refusal(tmp_path)
    (tmp_path / "genai_config.json").write_text("{")
    assert "genai_config.json: it is not JSON" in refusal(tmp_path)
    (tmp_path / "genai_config.json").write_text("[" * 100_000)
    assert "genai_config.json: it is not JSON" in refusal(tmp_path)


def test_config(tmp_path: Path) -> None:
    """genai_config.json wins; a list of end tokens is kept; nonsense is ignored."""
    write_decoder(tmp_path, preset("tiny-phi4"), weights=False)
    config = read_config(tmp_path)
    assert (config.context_length, config.vocab_size, config.head_size) == (4096, 1056, 64)
    assert config.rotary_offset is None
    generation = {"eos_token_id": [7, 8], "temperature": 0.5, "vocab_size": 9, "top_k": "many"}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    genai = json.loads((tmp_path / "genai_config.json").read_text())
    del genai["model"]["eos_token_id"], genai["search"]
    genai["model"]["bos_token_id"] = "one"
    webgpu = {"webgpu": {"multiRotaryCacheConcatOffset": "512"}}
    genai["model"]["decoder"]["session_options"] = {"provider_options": [webgpu]}
    (tmp_path / "genai_config.json").write_text(json.dumps(genai))
    config = read_config(tmp_path)
    assert (config.eos_token_ids, config.bos_token_id, config.vocab_size) == ((7, 8), None, 1056)
    assert config.rotary_offset == 512
    assert dict(config.search) == {"temperature": 0.5}


def test_dims(tmp_path: Path) -> None:
    text = HEAD + "g (float[height, width] x) => (float[height, width] y) { y = Neg (x) }"
    path = edited(tmp_path, lambda model: None, text)
    graph = load_model(path, CompileOptions(dims={"height": 7})).graph
    assert (graph.inputs[0].shape, graph.outputs[0].shape) == ([7, "width"], [7, "width"])
    assert "--dim depth: the model has no such dimension; it has: height, width" in refusal(
        path, dims={"depth": 2}
    )


def test_batch(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, preset("tiny-llama"), weights=False)
    model = onnx.load(path, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(model.SerializeToString())
    assert "input input_ids: its batch dimension is 2; only batch 1 is supported" in refusal(path, check=True)
    with pytest.raises(CompileError, match="--batch: 2 rows at once are not supported"):
        CompileOptions(batch=2)
    with pytest.raises(CompileError, match="only batch 1 is supported"):
        load_model(
            write_decoder(tmp_path, preset("tiny-llama"), weights=False),
            CompileOptions(check=True, dims={"batch_size": 2}),
        )


def test_other_names_for_the_same_dims(tmp_path: Path) -> None:
    """Whatever an exporter calls the dimensions, they have one spelling after import."""
    path = write_decoder(tmp_path, preset("tiny-llama"), weights=False)
    model = onnx.load(path, load_external_data=False)
    names = {
        "batch_size": "N",
        "sequence_length": "S",
        "past_sequence_length": "P",
        "total_sequence_length": "T",
    }
    for port in (*model.graph.input, *model.graph.output):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    path.write_bytes(model.SerializeToString())
    graph = front(path, CompileOptions(check=True)).graph
    assert graph.inputs[0].shape == [1, "sequence_length"]
    assert graph.inputs[1].shape == [1, 1, "past_sequence_length", 64]
    assert graph.outputs[0].shape == [1, "sequence_length", 1056]


def test_full_size_in_little_memory(tmp_path: Path) -> None:
    """Phi-4-mini, 2.2 GB of weights in a sparse file: the front half neither reads nor copies them."""
    config = replace(preset("phi-4-mini"), max_positions=8192)
    path = write_decoder(tmp_path, config, weights=False)
    model = onnx.load(path, load_external_data=False)
    ends = [
        sum(int(entry.value) for entry in tensor.external_data if entry.key in ("offset", "length"))
        for tensor in model.graph.initializer
    ]
    with open(tmp_path / "model.onnx.data", "wb") as data:
        data.truncate(max(ends))
    assert max(ends) > 2 << 30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = front(path, CompileOptions()).counts
    assert counts.nodes_after < counts.nodes_before / 1.5
    assert counts.seconds < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kilobytes
