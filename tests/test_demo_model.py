"""The demo model's text, its export with given weights, and its score."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from webgpu_compile.models import DecoderConfig, Precision, preset, write_trained
from webgpu_compile.models.decoder import build
from webgpu_compile.models.graph import DATA_FILE
from webgpu_compile.models.quantize import quantize_blocks

DEMO = Path(__file__).parent.parent / "models" / "demo"
sys.path.append(str(DEMO))
corpus, prepare, export, evaluate = map(importlib.import_module, ("corpus", "prepare", "export", "evaluate"))

F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
FLOAT = {"precision": Precision.FP32, "io_dtype": "f32"}
TIED = dataclasses.replace(preset("tiny-llama-untied"), vocab_size=512, max_positions=128, tied=True)
UNTIED_WITH_BIAS = dataclasses.replace(TIED, tied=False, qkv_bias=True, n_kv_heads=1)
IDS = np.array([[1, 7, 300, 42, 511, 9, 9, 250]])


def random_weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    """Hugging Face's names and shapes, [out, in]; no two sizes of a matrix are meant to be mixed up."""
    rng = np.random.default_rng(5)
    hidden, inner, kv = config.hidden_size, config.intermediate_size, config.n_kv_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.n_layers):
        base = f"model.layers.{layer}"
        for name, size in (("q", config.q_size), ("k", kv), ("v", kv)):
            shapes[f"{base}.self_attn.{name}_proj.weight"] = (size, hidden)
            if config.qkv_bias:
                shapes[f"{base}.self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{base}.self_attn.o_proj.weight"] = (hidden, config.q_size)
        shapes |= {f"{base}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{base}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{base}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    scale = {name: 1.0 if len(shape) == 1 else shape[1] ** -0.5 for name, shape in shapes.items()}
    return {name: (rng.normal(size=shape) * scale[name]).astype(F32) for name, shape in shapes.items()}


def reference_logits(config: DecoderConfig, weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Llama's forward pass in float64, [s, vocab]."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    heads, size, length = config.n_heads, config.head_size, len(ids)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * w[name]

    angles = np.outer(np.arange(length), config.rope.theta ** -(np.arange(0, size, 2) / size))  # type: ignore[union-attr]
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config.n_layers):
        base = f"model.layers.{layer}"
        h = norm(x, f"{base}.input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{base}.self_attn.{n}_proj.weight"].T + w.get(f"{base}.self_attn.{n}_proj.bias", 0.0))
            .reshape(length, -1, size)
            .swapaxes(0, 1)
            for n in "qkv"
        )
        k, v = (np.repeat(part, heads // config.n_kv_heads, 0) for part in (rotate(k), v))
        scores = rotate(q) @ k.swapaxes(1, 2) / np.sqrt(size)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + mixed.swapaxes(0, 1).reshape(length, -1) @ w[f"{base}.self_attn.o_proj.weight"].T
        h = norm(x, f"{base}.post_attention_layernorm.weight")
        gate = h @ w[f"{base}.mlp.gate_proj.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (h @ w[f"{base}.mlp.up_proj.weight"].T)
        x = x + gated @ w[f"{base}.mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    return np.asarray(norm(x, "model.norm.weight") @ w[head].T)


def onnx_logits(path: Path, config: DecoderConfig, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    empty = np.empty((1, config.n_kv_heads, 0, config.head_size), F16 if config.io_dtype == "f16" else F32)
    feeds = {value.name: empty for value in session.get_inputs()}
    feeds |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return np.asarray(session.run(["logits"], feeds)[0][0], np.float64)


@pytest.mark.parametrize("config", [TIED, UNTIED_WITH_BIAS], ids=["tied", "untied-bias"])
# Logits deviate by about 1. fp32: rounding alone. fp16: eleven bits through 2 layers.
@pytest.mark.parametrize(("changes", "tolerance"), [(FLOAT, 2e-5), ({"precision": Precision.FP16}, 0.02)])
def test_given_weights_compute_what_they_should(
    config: DecoderConfig, changes: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, **changes)
    weights = random_weights(config)
    expected = reference_logits(config, weights, IDS[0])
    assert expected.std() > 0.5
    actual = onnx_logits(write_trained(tmp_path, config, weights), config, IDS)
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("config", [TIED, UNTIED_WITH_BIAS], ids=["tied", "untied-bias"])
def test_int4_computes_with_its_dequantised_weights(config: DecoderConfig, tmp_path: Path) -> None:
    """With float activations only rounding remains: 2e-5, as for fp32."""
    config = dataclasses.replace(config, io_dtype="f32", accuracy_level=0)
    weights = random_weights(config)
    rounded = {}
    for name, matrix in weights.items():
        kept = matrix.ndim == 1 or (name == "model.embed_tokens.weight" and not config.tied)
        rounded[name] = matrix if kept else dequantised(*quantize_blocks(matrix, 32, F32))
    actual = onnx_logits(write_trained(tmp_path, config, weights), config, IDS)
    np.testing.assert_allclose(actual, reference_logits(config, rounded, IDS[0]), atol=2e-5, rtol=0)


def dequantised(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    pairs = np.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], codes.shape[1], -1)
    values = (pairs.astype(np.float32) - 8) * scales[..., None].astype(np.float32)
    return np.asarray(values.reshape(codes.shape[0], -1))


def test_the_graph_is_the_recipe_s() -> None:
    """Only the doc_string tells given weights from random ones."""
    random, trained = build(TIED).model(), build(TIED).model("Trained.")
    trained.doc_string = random.doc_string
    assert trained == random
    assert random.doc_string.startswith("Random weights. Written by")


def test_blocks_on_the_grid_are_kept() -> None:
    """What training rounded to int4 is exported unchanged, up to float16 of the weights."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (64, 4, 32))
    codes[:, :, 5] = -8
    scales = (rng.normal(size=(64, 4, 1)) * 0.01).astype(F16).astype(F32)
    matrix = (codes * scales).astype(F16).astype(F32).reshape(64, 128)
    packed, kept = quantize_blocks(matrix, 32, F16)
    assert np.array_equal(kept, scales[..., 0].astype(F16))
    assert np.array_equal((packed & 15).astype(int) - 8, codes[:, :, 0::2])
    assert np.array_equal((packed >> 4).astype(int) - 8, codes[:, :, 1::2])


def test_the_search_beats_the_default_scale() -> None:
    """Normal weights: 10 % less squared error than the scale of the largest magnitude alone (18 % seen)."""
    matrix = np.random.default_rng(2).normal(size=(128, 256)).astype(F32)
    blocks = matrix.reshape(-1, 32)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    plain = np.clip(np.rint(blocks / (peaks / -8)), -8, 7) * (peaks / -8)
    searched = dequantised(*quantize_blocks(matrix, 32, F16))
    default_error = np.square(plain - blocks).sum()
    assert np.square(searched - matrix).sum() < 0.9 * default_error


def test_a_last_block_is_padded_and_zeros_stay_zero() -> None:
    matrix = np.random.default_rng(3).normal(size=(3, 40)).astype(F32)
    matrix[1] = 0
    values = dequantised(*quantize_blocks(matrix, 32, F16))
    assert values.shape == (3, 64)
    assert not values[1].any()
    assert not values[:, 40:].any()
    assert np.abs(values[:, :40] - matrix).max() < 0.3


def broken(name: str, values: np.ndarray | None) -> dict[str, np.ndarray]:
    weights = random_weights(TIED)
    if values is None:
        del weights[name]
    else:
        weights[name] = values
    return weights


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (broken("model.norm.weight", None), {}, "the weights lack model.norm.weight"),
        (broken("lm_head.weight", np.ones((512, 256))), {}, "no place for: lm_head.weight"),
        (broken("model.norm.weight", np.ones(255)), {}, r"has shape \[256\], the weights \[255\]"),
        (broken("model.layers.1.mlp.up_proj.weight", np.full((512, 256), np.nan)), {}, "not finite"),
        (broken("model.layers.1.mlp.up_proj.weight", np.full((512, 256), 1e6)), {}, "too large for scales"),
        (broken("model.norm.weight", np.full(256, 1e5)), {}, "float16 cannot hold"),
        (broken("model.norm.weight", np.ones(256)), {"symmetric": False}, "asymmetric"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: dict[str, np.ndarray], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_trained(tmp_path / "out", dataclasses.replace(TIED, **changes), weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("textwrap.py", "textwrap"),
        ("test/test_textwrap.py", "textwrap"),
        ("library/textwrap.rst.txt", "textwrap"),
        ("json/decoder.py", "json"),
        ("json/__init__.py", "json"),
        ("test/test_json/test_decode.py", "json"),
        ("howto/index.rst", "howto"),
        ("_collections_abc.py", "collections_abc"),
    ],
)
def test_a_subject_is_held_out_as_a_whole(path: str, expected: str) -> None:
    assert corpus.subject(path) == expected


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


PROSE = "# a comment that is long enough to be text, and to be kept\n" * 5


def test_collect_takes_text_and_leaves_tables(tmp_path: Path) -> None:
    new = write(tmp_path / "new", {"a.py": PROSE, "test/test_a.py": PROSE, "table.py": "(1, 2), " * 99})
    old = write(
        tmp_path / "old",
        {"a.py": "# old\n" + PROSE, "gone.py": PROSE, "site-packages/x.py": PROSE, "short.py": "x = 1\n"},
    )
    (old / "latin.py").write_bytes(b"# \xe9\n" * 99)
    docs = write(tmp_path / "docs", {"library/a.rst.txt": PROSE, "b.rst": PROSE, "c.html": PROSE})
    found = [(document.group, document.path) for document in corpus.collect([new, old], [docs])]
    assert found == [
        ("documentation", "b.rst"),
        ("documentation", "library/a.rst.txt"),
        ("library", "a.py"),
        ("library", "gone.py"),
        ("tests", "test/test_a.py"),
    ]
    assert corpus.collect([new, old], [])[0].text == PROSE, "the first folder's file is taken"
    with pytest.raises(ValueError, match=r"no \.py"):
        corpus.collect([tmp_path / "nothing"], [])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of this machine's json, email and logging packages."""
    root = Path(json.__file__).parent.parent
    source = tmp_path_factory.mktemp("stdlib")
    for package in ("json", "email", "logging"):
        files = {f"{package}/{path.name}": path.read_text("utf-8") for path in (root / package).glob("*.py")}
        write(source, files)
    folder = tmp_path_factory.mktemp("data")
    prepare.prepare(folder, [source], [], vocab_size=512)
    return folder


def test_prepared_tokens_are_the_text(data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 512
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<pad>", "<s>", "</s>"]
    text = "def f(x):\n\treturn 'né 中 \U0001f600'\n    # bytes of any text have a token\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert "".join(map(tokenizer.id_to_token, tokenizer.encode("import").ids)) == "import"
    held_out = (data / "held-out.txt").read_text(encoding="utf-8")
    with np.load(data / "tokens.npz") as arrays:
        train, held = arrays["library.train"], arrays["library.held-out"]
        assert (train.dtype, arrays["tests.train"].size) == (np.uint16, 0)
    assert train[0] == held[0] == prepare.BOS
    assert train[-1] == held[-1] == prepare.EOS
    training_text = tokenizer.decode(train.tolist())
    assert "class JSONDecoder" in held_out
    assert "class JSONDecoder" not in training_text
    assert "class Logger" in training_text
    listing = (data / "sources.txt").read_text()
    assert "library held-out" in listing
    assert "library train" in listing


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as train.py leaves it, in two shards, with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    weights = {name: values.astype(F16) for name, values in random_weights(TIED).items()}
    names = sorted(weights)
    for index, chosen in enumerate((names[:7], names[7:])):
        path = folder / f"model-{index + 1:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in chosen}, path)
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": TIED.hidden_size,
        "intermediate_size": TIED.intermediate_size,
        "num_hidden_layers": TIED.n_layers,
        "num_attention_heads": TIED.n_heads,
        "num_key_value_heads": TIED.n_kv_heads,
        "head_dim": TIED.head_size,
        "max_position_embeddings": TIED.max_positions,
        "rope_theta": 10000.0,
        "rms_norm_eps": TIED.norm_epsilon,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "held-out.txt"):
        (folder / name).write_bytes((data / name).read_bytes())
    return folder


def test_export_writes_a_whole_folder(checkpoint: Path, tmp_path: Path) -> None:
    config = export.export(checkpoint, tmp_path, Precision.INT4)
    assert config == dataclasses.replace(TIED, precision=Precision.INT4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        DATA_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    genai = json.loads((tmp_path / "genai_config.json").read_text())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert genai["model"]["eos_token_id"] == generation["eos_token_id"] == prepare.EOS
    assert genai["model"]["bos_token_id"] == generation["bos_token_id"] == prepare.BOS
    assert generation["max_length"] == TIED.max_positions
    ops = [node.op_type for node in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node]
    assert (ops.count("MatMulNBits"), ops.count("GatherBlockQuantized")) == (11, 1)


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if "00002-of" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="lacks model"):
        export.export(tmp_path, tmp_path / "out", Precision.INT4)


def test_the_score_is_the_reference_s(checkpoint: Path, tmp_path: Path) -> None:
    """Windows that do not overlap, the first token of each unpredicted; float32 against float64: 1e-4."""
    config = export.export(checkpoint, tmp_path, Precision.FP32)
    text = (checkpoint / "held-out.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids[:75]
    weights = export.read_weights(checkpoint)
    losses = []
    for row in (ids[:32], ids[32:64], ids[64:75]):
        logits = reference_logits(config, weights, np.array(row))[:-1]
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-logits[i, token] for i, token in enumerate(row[1:])]
    score = evaluate.evaluate(tmp_path, text, n_tokens=75, window=32)
    assert score.n_tokens == len(losses) == 72
    assert score.loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert score.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert score.text().startswith(f"loss {score.loss:.4f}  perplexity ")
    with pytest.raises(ValueError, match="two tokens"):
        evaluate.evaluate(tmp_path, "x", n_tokens=1)
