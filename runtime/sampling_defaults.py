"""How the model's makers want its tokens to be chosen: generation_config.json and genai_config.json."""

from __future__ import annotations

import math
from typing import Any

from .artifact import Artifact
from .chat_template import read_object

NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""Arguments of `Session.generate` that choose tokens."""
FILTERS = ("top_k", "top_p", "min_p")


def sampling_defaults(artifact: Artifact) -> dict[str, Any]:
    """Arguments of `Session.generate`; those that change nothing are left out.

    genai_config.json's `search` wins over generation_config.json, as in the compiler. Without `do_sample`
    only the repetition penalty counts, as in transformers. Values of wrong types or ranges are ignored.

    Raises:
        RuntimeFailure: a file is damaged.
    """
    search = read_object(artifact, "genai_config.json").get("search")
    found = read_object(artifact, "generation_config.json") | (search if isinstance(search, dict) else {})
    names = NAMES[:-1] if found.get("do_sample") is True else ("repetition_penalty",)
    values = {name: found[name] for name in names if _usable(name, found.get(name))}
    if found.get("do_sample") is True:
        values.setdefault("temperature", 1.0)
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    return {name: value for name, value in values.items() if neutral.get(name) != value}


def merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with what the caller gave; None is not given. A seed alone does not change the method."""
    result = defaults | {name: value for name, value in given.items() if value is not None}
    if result.get("temperature") == 0:  # greedy: the model's filters would have nothing to do
        return {name: value for name, value in result.items() if name not in FILTERS or name in given}
    return result


def _usable(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    match name:
        case "top_k":
            return isinstance(value, int) and value >= 0
        case "top_p":
            return 0 < value <= 1
        case "min_p":
            return 0 <= value <= 1
        case "repetition_penalty":
            return value > 0
    return value >= 0
