"""What stands beside a model: genai_config.json, generation_config.json, config.json.

Everything is optional; nothing in these files is trusted to have the right type.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CompileError

MAX_CONFIG_NBYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Facts about a language model that its graph does not carry.

    Args:
        context_length: positions the model was made for.
        vocab_size: tokens are in [0, vocab_size).
        eos_token_ids: tokens that end a generation; several models have more than one.
        rotary_offset: rows of the short table in a concatenated LongRoPE cache
            (`multiRotaryCacheConcatOffset` of onnxruntime-genai's WebGPU provider options).
        original_context: positions before LongRoPE's long table takes over
            (`original_max_position_embeddings`).
        search: default sampling settings (temperature, top_k, top_p, …) as found.
    """

    model_type: str | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    head_size: int | None = None
    hidden_size: int | None = None
    rotary_offset: int | None = None
    original_context: int | None = None
    token_input: str = "input_ids"
    mask_input: str = "attention_mask"
    position_input: str = "position_ids"
    logits_output: str = "logits"
    search: tuple[tuple[str, float | bool], ...] = ()


def read_config(folder: Path) -> ModelConfig:
    """Merge the three files; genai_config.json wins over generation_config.json over config.json.

    Raises:
        CompileError: when a file is there but is not a JSON object.
    """
    genai = _object(_read(folder / "genai_config.json").get("model"))
    decoder = _object(genai.get("decoder"))
    generation = _read(folder / "generation_config.json")
    hugging_face = _read(folder / "config.json")
    order = (genai, decoder, generation, hugging_face)
    inputs, outputs = _object(decoder.get("inputs")), _object(decoder.get("outputs"))
    search = {**_search(generation), **_search(_object(_read(folder / "genai_config.json").get("search")))}
    eos = next((ids for source in order if (ids := _integers(source.get("eos_token_id")))), ())
    return ModelConfig(
        model_type=_text(genai.get("type")) or _text(hugging_face.get("model_type")),
        context_length=_integer(genai.get("context_length"))
        or _integer(hugging_face.get("max_position_embeddings")),
        vocab_size=_first(order, "vocab_size"),
        bos_token_id=_first(order, "bos_token_id"),
        eos_token_ids=eos,
        pad_token_id=_first(order, "pad_token_id"),
        head_size=_integer(decoder.get("head_size")) or _integer(hugging_face.get("head_dim")),
        hidden_size=_first(order, "hidden_size"),
        rotary_offset=_rotary_offset(decoder),
        original_context=_integer(hugging_face.get("original_max_position_embeddings")),
        token_input=_text(inputs.get("input_ids")) or "input_ids",
        mask_input=_text(inputs.get("attention_mask")) or "attention_mask",
        position_input=_text(inputs.get("position_ids")) or "position_ids",
        logits_output=_text(outputs.get("logits")) or "logits",
        search=tuple(sorted(search.items())),
    )


def model_filename(folder: Path) -> str | None:
    """The file that genai_config.json names, if it does."""
    model = _object(_read(folder / "genai_config.json").get("model"))
    return _text(_object(model.get("decoder")).get("filename"))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CONFIG_NBYTES:
        raise CompileError(path.name, "it is larger than 16 MiB", "check the file, it looks damaged")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CompileError(path.name, "it is not JSON", "repair or remove the file") from error
    if not isinstance(content, dict):
        raise CompileError(path.name, "it is not a JSON object", "repair or remove the file")
    return content


def _rotary_offset(decoder: dict[str, Any]) -> int | None:
    options = _object(decoder.get("session_options")).get("provider_options")
    for entry in options if isinstance(options, list) else ():
        for name, settings in _object(entry).items():
            if name.lower() == "webgpu":
                offset = _object(settings).get("multiRotaryCacheConcatOffset")
                return int(str(offset)) if str(offset).isdecimal() and int(str(offset)) > 0 else None
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _integers(value: Any) -> tuple[int, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(number for entry in entries if (number := _integer(entry)) is not None)


def _first(sources: tuple[dict[str, Any], ...], key: str) -> int | None:
    return next((found for source in sources if (found := _integer(source.get(key))) is not None), None)


def _search(source: dict[str, Any]) -> dict[str, float | bool]:
    keys = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length", "min_length")
    return {key: source[key] for key in keys if isinstance(source.get(key), int | float)}
