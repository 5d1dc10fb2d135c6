"""The files beside model.onnx: genai_config.json, a byte-level tokenizer, and the recipe itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import DecoderConfig, LongRope, MaskForm, config_from_dict, config_to_dict

SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = range(3)
RECIPE = "recipe.json"


def write_companions(folder: Path, config: DecoderConfig, seed: int) -> None:
    recipe = {"seed": seed, "config": config_to_dict(config)}
    files = {
        "genai_config.json": (genai_config(config), 4),
        "tokenizer.json": (tokenizer(config.vocab_size), 2),
        "tokenizer_config.json": (tokenizer_config(config), 2),
        RECIPE: (recipe, 2),
    }
    for name, (content, indent) in files.items():
        text = json.dumps(content, indent=indent, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> tuple[DecoderConfig, int]:
    """(config, seed) of a folder that `write_decoder` wrote; ValueError or OSError when it is not one."""
    record = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("seed"), int) or "config" not in record:
        raise ValueError(f"{folder / RECIPE} is not a decoder recipe")
    return config_from_dict(record["config"]), record["seed"]


def genai_config(config: DecoderConfig) -> dict[str, Any]:
    """onnxruntime-genai's runtime settings, as its model builder writes them."""
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    outputs = {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": provider_options(config)},
        "filename": "model.onnx",
        "head_size": config.head_size,
        "hidden_size": config.hidden_size,
        "inputs": inputs,
        "outputs": outputs,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
    }
    model = {
        "bos_token_id": BOS,
        "context_length": config.max_positions,
        "decoder": decoder,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "type": str(config.family),
        "vocab_size": config.vocab_size,
    }
    return {"model": model, "search": SEARCH | {"max_length": config.max_positions}}


SEARCH: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "max_length": 0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "past_present_share_buffer": True,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


def provider_options(config: DecoderConfig) -> list[dict[str, dict[str, str]]]:
    if config.provider != "webgpu":
        return []
    capture = config.mask is MaskForm.GRAPH
    options = {
        "enableGraphCapture": "1" if capture else "0",
        "validationMode": "disabled" if capture else "basic",
    }
    if capture and isinstance(config.rope, LongRope):
        options["multiRotaryCacheConcatOffset"] = str(config.rope.original_positions)
    return [{"webgpu": options}]


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, sorted: Latin-1's printable ones, then U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def merges(n: int) -> list[tuple[str, str]]:
    """Up to `n` pairs of letters, so that a tiny vocabulary is all text: ' a' first, then 'aa', then 'Aa'."""
    lower = [chr(ord("a") + i) for i in range(26)]
    firsts = ["Ġ", *lower, *(letter.upper() for letter in lower)]
    return [(first, second) for first in firsts for second in lower][: max(n, 0)]


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE of `tokenizers`: 3 special tokens, 256 bytes, then letter pairs while ids last.

    Raise ValueError for a vocabulary too small for the bytes.
    """
    base = [*SPECIAL, *byte_alphabet()]
    if vocab_size < len(base):
        raise ValueError(f"vocab_size is {vocab_size}: a byte-level tokenizer needs {len(base)}")
    pairs = merges(vocab_size - len(base))
    vocab = {token: i for i, token in enumerate([*base, *(a + b for a, b in pairs)])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in pairs],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, token) for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": model,
    }


def added_token(index: int, content: str) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **off, "special": True}


def tokenizer_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "backend": "tokenizers",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "is_local": True,
        "local_files_only": True,
        "model_max_length": config.max_positions,
        "pad_token": SPECIAL[PAD],
        "tokenizer_class": "TokenizersBackend",
    }
