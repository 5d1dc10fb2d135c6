# mypy: disable-error-code="import-not-found,unused-ignore"
"""Export trained weights as an ONNX model folder, and measure what int4 costs.

    python models/demo/export.py WEIGHTS [--precision int4|fp16|fp32] [--out FOLDER] [--tokens N]

WEIGHTS is a folder that train.py wrote. By default the shipped folder, models/demo/int4, and the held-out
text and the log beside it are replaced. The loss of the float and the exported model on that text is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import evaluate
from safetensors.numpy import load_file
from webgpu_compile.models import DecoderConfig, DefaultRope, Family, Precision, write_trained
from webgpu_compile.models.companions import BOS, EOS, PAD, genai_config, tokenizer_config

HERE = Path(__file__).parent
ORIGIN = "Trained on CPython's standard library and documentation; see models/demo/README.md."
GENERATION = {
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "max_length": 1024,
}


def decoder_config(record: dict[str, Any], precision: Precision) -> DecoderConfig:
    """The decoder of a Hugging Face config.json of model type llama. Raise ValueError for another type."""
    if record["model_type"] != "llama":
        raise ValueError(f"model type {record['model_type']!r} is not llama")
    return DecoderConfig(
        family=Family.LLAMA,
        hidden_size=record["hidden_size"],
        intermediate_size=record["intermediate_size"],
        n_layers=record["num_hidden_layers"],
        n_heads=record["num_attention_heads"],
        n_kv_heads=record["num_key_value_heads"],
        head_size=record["head_dim"],
        vocab_size=record["vocab_size"],
        max_positions=record["max_position_embeddings"],
        rope=DefaultRope(record["rope_theta"]),
        norm_epsilon=record["rms_norm_eps"],
        tied=record["tie_word_embeddings"],
        precision=precision,
        io_dtype="f32" if precision is Precision.FP32 else "f16",
    )


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All shards as one mapping, float32. Raise ValueError when a shard is missing."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if not shards or len(shards) != int(shards[0].stem.split("-")[-1]):
        raise ValueError(f"{folder} lacks model-*.safetensors files")
    weights: dict[str, np.ndarray] = {}
    for shard in shards:
        weights |= {name: values.astype(np.float32) for name, values in load_file(shard).items()}
    return weights


def export(source: Path, folder: Path, precision: Precision) -> DecoderConfig:
    """Write a whole model folder."""
    record = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = decoder_config(record, precision)
    write_trained(folder, config, read_weights(source), origin=ORIGIN)
    genai = genai_config(config)
    genai["search"] |= {
        "do_sample": True,
        "temperature": GENERATION["temperature"],
        "top_p": GENERATION["top_p"],
    }
    files = {
        "genai_config.json": genai,
        "generation_config.json": GENERATION | {"max_length": config.max_positions},
        "tokenizer_config.json": tokenizer_config(config),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description="Export trained weights as an ONNX model folder.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default=Precision.INT4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, help="of the held-out text to measure; all of them by default")
    options = parser.parse_args()
    folder = options.out or HERE / str(options.precision)
    if folder.exists():
        for name in ("model.onnx", "model.onnx.data"):
            (folder / name).unlink(missing_ok=True)
    config = export(options.weights, folder, options.precision)
    held_out = options.weights / "held-out.txt"
    if options.out is None:
        shutil.copyfile(held_out, HERE / "held-out.txt")
        shutil.copyfile(options.weights / "train.log", HERE / "train.log")
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {nbytes / 1e6:.2f} MB in {len(list(folder.iterdir()))} files")
    text = held_out.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        export(options.weights, Path(scratch), Precision.FP32)
        print(f"fp32 in ONNX Runtime: {evaluate(Path(scratch), text, n_tokens=options.tokens).text()}")
    print(f"{options.precision} in ONNX Runtime: {evaluate(folder, text, n_tokens=options.tokens).text()}")
    if config.precision is Precision.INT4:
        exact = replace(config, accuracy_level=0)
        with tempfile.TemporaryDirectory() as scratch:
            write_trained(scratch, exact, read_weights(options.weights), origin=ORIGIN)
            for name in ("genai_config.json", "tokenizer.json"):
                shutil.copyfile(folder / name, Path(scratch) / name)
            score = evaluate(Path(scratch), text, n_tokens=options.tokens)
            print(f"int4 with float activations: {score.text()}")


if __name__ == "__main__":
    main()
