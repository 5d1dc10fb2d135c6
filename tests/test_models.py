"""The decoder recipe: the real exporter's graphs, node for node, and models that ONNX Runtime runs.

The golden texts under golden/models/ describe files of the real exporter (onnxruntime-genai 0.18.0), so they
are never blessed from our own. To rewrite them from a folder of its models:

    python tests/test_models.py FOLDER
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from webgpu_compile.models import (
    DecoderConfig,
    LongRope,
    MaskForm,
    Precision,
    fill_weights,
    preset,
    preset_names,
    write_decoder,
)
from webgpu_compile.models.__main__ import main
from webgpu_compile.models.companions import read_recipe
from webgpu_compile.models.decoder import build

GOLDEN = Path(__file__).parent / "golden" / "models"
TINY = tuple(name for name in preset_names() if name.startswith("tiny-"))
GRAPH = {"mask": MaskForm.GRAPH}
FP16 = {"precision": Precision.FP16}
FP32 = {"precision": Precision.FP32, "io_dtype": "f32"}
FLOAT = {"accuracy_level": 0, "io_dtype": "f32"}

# golden text: (folder of the exporter's model, our config)
CASES: dict[str, tuple[str, DecoderConfig]] = {}
for _name in TINY:
    CASES[f"{_name}-int4"] = (f"{_name}/webgpu-int4", preset(_name))
    CASES[f"{_name}-int4-graph"] = (f"{_name}/webgpu-int4-graph", dataclasses.replace(preset(_name), **GRAPH))
for _name in ("tiny-llama", "tiny-phi4", "tiny-mistral"):
    _fp16 = dataclasses.replace(preset(_name), **FP16)
    CASES[f"{_name}-fp16"] = (f"{_name}/webgpu-fp16", _fp16)
    CASES[f"{_name}-fp16-graph"] = (f"{_name}/webgpu-fp16-graph", dataclasses.replace(_fp16, **GRAPH))
_f32 = dataclasses.replace(preset("tiny-llama"), io_dtype="f32")
CASES["tiny-llama-int4-f32io"] = ("tiny-llama/webgpu-int4-fp32io", _f32)
CASES["tiny-llama-cpu-int4"] = ("tiny-llama/cpu-int4", dataclasses.replace(_f32, provider="cpu"))
for _name, _folder, _changes in (
    ("llama-3.2-1b", "llama-3.2-1b-nograph", {"max_positions": 4096}),
    ("llama-3.2-1b", "llama-3.2-1b", {"max_positions": 4096, **GRAPH}),
    ("llama-3.1-8b", "llama-3.1-8b", {"max_positions": 4096, **GRAPH}),
    ("phi-4-mini", "phi-4-mini", {"max_positions": 8192, **GRAPH}),
):
    CASES[_folder] = (f"full-size/{_folder}", dataclasses.replace(preset(_name), **_changes))

# ------------------------------------------------------------------ a model as text

DTYPES = {1: "f32", 2: "u8", 6: "i32", 7: "i64", 9: "bool", 10: "f16"}
# rows of a large or float32 rope cache that are compared: small, large and odd ones
ROWS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181, 6765, 10946)


def typed(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return f"{value.name}: {DTYPES[tensor.elem_type]}"
    dims = ",".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name}: {DTYPES[tensor.elem_type]}[{dims}]"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def rope_text(values: np.ndarray) -> str:
    """float16 caches bit for bit, every eighth row: none of these shows that torch's cos is an ulp off.

    Phi-4-mini's has too many of those, and float32 shows each: there a few rows, float32 ones to 2^-16.
    """
    if values.dtype == np.float16 and len(values) <= 8192:
        rows = values[::8]
    else:
        rows = values[[row for row in ROWS if row < len(values)]]
    if rows.dtype == np.float32:
        rows = np.round(rows.astype(np.float64) * 2**16).astype(np.int32)
    return f"rows {digest(rows.tobytes())}"


def attribute_text(attribute: onnx.AttributeProto) -> str:
    if attribute.type == onnx.AttributeProto.TENSOR:
        values = onnx.numpy_helper.to_array(attribute.t)
        named = f"{attribute.t.name!r} " if attribute.t.name else ""
        text = rope_text(values) if values.ndim == 2 else str(values.tolist())
        return f"{attribute.name}={named}{DTYPES[attribute.t.data_type]}{list(values.shape)} {text}"
    if attribute.type == onnx.AttributeProto.GRAPH:
        return f"{attribute.name}=graph {attribute.g.name}"
    return f"{attribute.name}={onnx.helper.get_attribute_value(attribute)!r}"


def node_lines(graph: onnx.GraphProto, known: dict[str, str], indent: str = "") -> Iterator[str]:
    for node in graph.node:
        outputs = ", ".join(known.get(name, name) for name in node.output)
        attributes = list(node.attribute)
        if node.op_type == "MatMulNBits":  # the full-size files were quantised by a stand-in: other order
            attributes.sort(key=lambda attribute: attribute.name)
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        yield f"{indent}{node.name} = {op}({', '.join(node.input)}) -> {outputs}"
        if attributes:
            yield f"{indent}    {{{', '.join(map(attribute_text, attributes))}}}"
        for attribute in attributes:
            if attribute.type == onnx.AttributeProto.GRAPH:
                types = {value.name: typed(value) for value in attribute.g.output}
                yield from node_lines(attribute.g, types, indent + "        ")


def describe(model: onnx.ModelProto, values: Callable[[str], np.ndarray]) -> str:
    """Everything but weights, a line each. `values(name)` reads a rope cache."""
    graph = model.graph
    opsets = ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import)
    lines = [f"ir {model.ir_version}, {opsets}, {model.producer_name} {model.producer_version}, {graph.name}"]
    lines += [f"metadata {entry.key}={entry.value}" for entry in model.metadata_props]
    lines += [f"input {typed(value)}" for value in graph.input]
    lines += [f"output {typed(value)}" for value in graph.output]
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        text = f" {rope_text(values(tensor.name))}" if tensor.name in ("cos_cache", "sin_cache") else ""
        at = f"{where['location']} {where['offset']}+{where['length']}"
        lines.append(f"{tensor.name}: {DTYPES[tensor.data_type]}{list(tensor.dims)} {at}{text}")
    lines += node_lines(graph, {value.name: typed(value) for value in graph.value_info})
    order = [value.name for value in graph.value_info]
    assert len(set(order)) == len(order)
    lines.append(f"value_info {len(order)} {digest(chr(10).join(order).encode())}")
    return elided(lines)


def elided(lines: list[str]) -> str:
    """Without the lines of layers 2 and up of a deep model, but with a digest of them all."""
    layers = [
        max(map(int, re.findall(r"(?:layers|values|present)\.(\d+)", line)), default=0) for line in lines
    ]
    if max(layers) <= 4:
        return "\n".join(lines) + "\n"
    kept = [line for line, layer in zip(lines, layers, strict=True) if layer < 2 or layer == max(layers)]
    return "\n".join([*kept, f"all {len(lines)} lines {digest(chr(10).join(lines).encode())}"]) + "\n"


def values_in(folder: Path, model: onnx.ModelProto) -> Callable[[str], np.ndarray]:
    """Initializers read from the folder's data file, or a full-size skeleton's small.bin."""

    def read(name: str) -> np.ndarray:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        file, offset = "model.onnx.data", int(tensor.external_data[1].value)
        if (folder / "small.bin").exists():
            entries = json.loads((folder / "manifest.json").read_text())["tensors"]
            file, offset = "small.bin", next(entry["src"] for entry in entries if entry["name"] == name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = int(np.prod(tensor.dims))
        return np.fromfile(folder / file, dtype, count, offset=offset).reshape(tensor.dims)

    return read


def described(folder: Path) -> str:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    settings = json.dumps(json.loads((folder / "genai_config.json").read_text()))
    return describe(model, values_in(folder, model)) + f"genai_config {settings}\n"


@pytest.mark.parametrize("name", CASES)
def test_the_graph_is_the_exporters(name: str, tmp_path: Path) -> None:
    config = CASES[name][1]
    full_size = config.hidden_size > 1000
    folder = write_decoder(tmp_path, config, weights=not full_size).parent
    if full_size:  # gigabytes: only the rope caches, with the offsets that the exporter's skeleton has
        write_rope_caches(folder, config)
    ours, exporters = described(folder), (GOLDEN / f"{name}.txt").read_text()
    changes = difflib.unified_diff(
        exporters.splitlines(), ours.splitlines(), "exporter", "ours", lineterm="", n=0
    )
    assert ours == exporters, "\n".join(list(changes)[:12])


def write_rope_caches(folder: Path, config: DecoderConfig) -> None:
    offset = 0
    with (folder / "model.onnx.data").open("wb") as file:
        for tensor in build(config).tensors:
            if tensor.name in ("cos_cache", "sin_cache"):
                file.seek(offset)  # a sparse file up to here
                file.write(tensor.source.values.tobytes())
            offset += tensor.nbytes


# ------------------------------------------------------------------ models that run


def run(folder: Path, config: DecoderConfig, ids: list[int], n_decoded: int = 2) -> np.ndarray:
    """Logits of a prompt and of `n_decoded` fixed tokens after it, [rows, vocab], on ONNX Runtime CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    dtype = np.float16 if config.io_dtype == "f16" else np.float32
    empty = np.zeros((1, config.n_kv_heads, 0, config.head_size), dtype)
    cache = {name.replace("present", "past_key_values"): empty for name in names if name != "logits"}
    logits, total = [], 0
    for step in [ids, *([7 + i] for i in range(n_decoded))]:
        total += len(step)
        feeds = {"input_ids": np.array([step]), "attention_mask": np.ones((1, total), np.int64), **cache}
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        logits.append(outputs.pop("logits")[0].astype(np.float32))
        cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    return np.concatenate(logits)


PROMPT = [int(token) for token in np.random.default_rng(5).integers(3, 1056, 40)]


def written(folder: Path, config: DecoderConfig, **options: int) -> np.ndarray:
    return run(write_decoder(folder, config, **options).parent, config, PROMPT)


@pytest.mark.parametrize(
    "changes", [{}, FP16, FP32, {"symmetric": False}], ids=["int4", "fp16", "fp32", "zp"]
)
@pytest.mark.parametrize("name", TINY)
def test_onnxruntime_runs_every_tiny_model(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    logits = written(tmp_path, dataclasses.replace(preset(name), **changes))
    assert logits.shape == (len(PROMPT) + 2, 1056)
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 1.0
    # a model whose layers do nothing, or that repeats its input, would answer few tokens or the last one
    best = logits.argmax(axis=1)
    assert len(set(best.tolist())) > 15
    assert (best[: len(PROMPT)] == PROMPT).sum() <= 4


@pytest.mark.parametrize("name", TINY)
def test_spellings_of_one_decoder_have_the_same_logits(name: str, tmp_path: Path) -> None:
    """Weights follow the seed and the tensor's name, so plain, graph, mobius and pruned agree bit for bit."""
    config = preset(name)
    plain = written(tmp_path / "plain", config)
    for mask in (MaskForm.GRAPH, MaskForm.MOBIUS):
        np.testing.assert_array_equal(written(tmp_path / mask, dataclasses.replace(config, mask=mask)), plain)
    pruned = written(tmp_path / "pruned", dataclasses.replace(config, prune_lm_head=True))
    assert pruned.shape == (3, 1056)
    # not bit for bit: ONNX Runtime multiplies one row by other code than forty; int8 rounding is per row
    np.testing.assert_allclose(pruned, plain[-3:], atol=2e-3)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["tiny-llama-untied", "tiny-phi4"])
def test_int4_is_the_float_model_of_its_dequantised_weights(
    name: str, symmetric: bool, block_size: int, tmp_path: Path
) -> None:
    """w = (code - zero point) · scale, low nibble first; Phi-4's 384 is no multiple of 256: padded blocks.

    Both in float32; sums in another order differ by about 1e-5.
    """
    config = dataclasses.replace(preset(name), block_size=block_size, symmetric=symmetric, **FLOAT)
    folder = write_decoder(tmp_path / "int4", config).parent
    wide = dataclasses.replace(preset(name), **FP32)
    reference = write_decoder(tmp_path / "fp32", wide).parent
    dequantise(folder, reference)
    np.testing.assert_allclose(run(folder, config, PROMPT), run(reference, wide, PROMPT), atol=2e-4)


def dequantise(source: Path, target: Path) -> None:
    """Overwrite each MatMul weight of `target` by the dequantised one of `source`."""
    quantised = onnx.load(str(source / "model.onnx"), load_external_data=False)
    read = values_in(source, quantised)
    names = {tensor.name for tensor in quantised.graph.initializer}
    data = np.memmap(target / "model.onnx.data", np.uint8, "r+")
    for tensor in onnx.load(str(target / "model.onnx"), load_external_data=False).graph.initializer:
        if f"{tensor.name}_Q4" not in names:
            continue
        packed = read(f"{tensor.name}_Q4")
        codes = (
            np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32)
        )
        zero = np.full(packed.shape[:2], 8, np.float32)
        if f"{tensor.name}_zero_points" in names:
            points = read(f"{tensor.name}_zero_points")
            zero = np.stack([points & 15, points >> 4], axis=-1).reshape(len(points), -1)[
                :, : packed.shape[1]
            ]
        weights = (codes - zero[..., None]) * read(f"{tensor.name}_scales")[..., None]
        matrix = weights.reshape(len(weights), -1)[:, : tensor.dims[0]].T.astype(np.float32)
        offset = int(tensor.external_data[1].value)
        data[offset : offset + matrix.nbytes] = np.ascontiguousarray(matrix).view(np.uint8).reshape(-1)
    data.flush()


def test_about_half_of_the_symmetric_scales_are_negative(tmp_path: Path) -> None:
    for symmetric, low, high in ((True, 0.45, 0.55), (False, 0.0, 0.0)):
        folder = tmp_path / str(symmetric)
        path = write_decoder(folder, dataclasses.replace(preset("tiny-llama"), symmetric=symmetric))
        model = onnx.load(str(path), load_external_data=False)
        negative = float((values_in(folder, model)("lm_head.MatMul.weight_scales") < 0).mean())
        assert low <= negative <= high


def test_sliding_window_and_long_rope_change_what_they_should(tmp_path: Path) -> None:
    window = preset("tiny-mistral")
    seen, all_seen = (
        written(tmp_path / str(size), dataclasses.replace(window, sliding_window=size)) for size in (16, None)
    )
    np.testing.assert_array_equal(seen[:16], all_seen[:16])
    assert np.abs(seen[20:] - all_seen[20:]).max() > 0.5
    # LongRoPE: one token past the original positions, the long cache serves all of the step's tokens
    config = preset("tiny-phi4")
    assert isinstance(config.rope, LongRope)
    swapped = dataclasses.replace(config.rope, long_factors=config.rope.short_factors)
    ids = (PROMPT * 13)[:511]
    logits = [
        run(write_decoder(tmp_path / str(i), each).parent, each, ids, 2)
        for i, each in enumerate((config, dataclasses.replace(config, rope=swapped)))
    ]
    np.testing.assert_array_equal(logits[0][:512], logits[1][:512])
    assert np.abs(logits[0][512] - logits[1][512]).max() > 0.1


# ------------------------------------------------------------------ files


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    config = preset("tiny-qwen25")
    folders = [
        write_decoder(tmp_path / name, config, seed=seed).parent
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, second, other = map(contents, folders)
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.onnx.data", "recipe.json"}


def test_pieces_do_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of a tensor has random numbers of its own, and the file the size it should have."""
    monkeypatch.setattr("webgpu_compile.models.weights.PIECE", 1 << 12)
    progress: list[tuple[int, int]] = []
    path = write_decoder(
        tmp_path, preset("tiny-llama"), progress=lambda done, total: progress.append((done, total))
    )
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert progress[-1] == (size, size)
    model = onnx.load(str(path), load_external_data=False)
    codes = values_in(tmp_path, model)("lm_head.MatMul.weight_Q4").reshape(-1, 1 << 12)
    assert len(np.unique(codes, axis=0)) == len(codes)
    assert len(np.unique(codes)) == 256


def test_cli_skeleton_then_fill_is_the_model(tmp_path: Path) -> None:
    options = ["--preset", "tiny-phi4", "--layers", "3", "--block-size", "64", "--graph", "--seed", "9"]
    runner = CliRunner()
    for folder, extra in (("whole", []), ("parts", ["--skeleton"])):
        result = runner.invoke(main, [*options, *extra, "-o", str(tmp_path / folder)])
        assert result.exit_code == 0, result.output
    assert not (tmp_path / "parts" / "model.onnx.data").exists()
    result = runner.invoke(main, ["--fill", "-o", str(tmp_path / "parts")])
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    config, seed = read_recipe(tmp_path / "parts")
    changes = {"n_layers": 3, "block_size": 64, **GRAPH}
    assert (config, seed) == (dataclasses.replace(preset("tiny-phi4"), **changes), 9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "llama-9"], "no preset 'llama-9': use one of tiny-llama,"),
        ([], "give either --preset NAME or --fill"),
        (["--fill"], "recipe.json"),
        (["--preset", "tiny-llama", "--kv-heads", "3"], "n_heads (4) must be a multiple of n_kv_heads (3)"),
        (["--preset", "tiny-phi4", "--max-positions", "512"], "max_positions (512) must exceed"),
        (
            ["--preset", "tiny-llama", "--precision", "fp16", "--io-dtype", "f32"],
            "precision fp16 has io_dtype",
        ),
        (["--preset", "tiny-llama", "--vocab-size", "100"], "a byte-level tokenizer needs 259"),
    ],
)
def test_cli_errors_are_sentences(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_fill_refuses_another_model(tmp_path: Path) -> None:
    write_decoder(tmp_path, preset("tiny-llama"), weights=False)
    with pytest.raises(ValueError, match="is not the model that its recipe describes"):
        fill_weights(tmp_path, preset("tiny-phi3"), 0)


def test_tokenizer_reads_back_what_it_wrote(tmp_path: Path) -> None:
    write_decoder(tmp_path, preset("tiny-llama"), weights=False)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 1056
    for text in ("Hello world, again!", "naïve Grüße 日本語 🎉\n\ttabs", "".join(map(chr, range(1, 256)))):
        ids = tokenizer.encode(text).ids
        assert max(ids) < 1056
        assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("</s>") == 2


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, (folder, _) in CASES.items():
        (GOLDEN / f"{name}.txt").write_text(described(Path(sys.argv[1]) / folder))
