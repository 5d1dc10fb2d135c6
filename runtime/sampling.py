"""How the next token is chosen: the caller's numbers, checked, as the words that the GPU reads."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import RuntimeFailure

GREEDY, DRAW, FIRST = 0, 1, 2
"""The word `sampling`: the arg-max; a token at random; the first token that the filters leave."""

LOG2_E = 1.4426950408889634
SEED_BITS = 32
"""Of a seed that the system chooses: short to read and to write down, and exact in JavaScript."""

_F32_MIN, _F32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Checked parameters of one generation. With temperature 0 the most likely token is taken.

    Neutral values: top_k 0, top_p 1, min_p 0, repetition_penalty 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def mode(self) -> int:
        """GREEDY, DRAW or FIRST."""
        if self.temperature > 0:
            return DRAW
        return GREEDY if self.repetition_penalty == 1 else FIRST

    def words(self) -> dict[str, int]:
        """The words of the `sequence` buffer by name, as `compiler/sequence.py` describes them.

        Reciprocals are made here in float64 and rounded once: division on GPUs is not exact.
        """
        greedy = self.temperature == 0
        return {
            "sampling": self.mode,
            "seed_low": self.seed & 0xFFFFFFFF,
            "seed_high": self.seed >> 32,
            "inverse_temperature": _f32_bits(_F32_MAX if greedy else 2**26 * LOG2_E / self.temperature),
            "top_k": 1 if greedy else min(self.top_k, 0xFFFFFFFF),
            "top_p": 0 if greedy or self.top_p == 1 else min(max(round(self.top_p * 2**32), 1), 0xFFFFFFFF),
            "min_p": max(math.ceil(self.min_p * 2**31), 1),
            "repetition_penalty": _f32_bits(self.repetition_penalty),
            "inverse_repetition_penalty": _f32_bits(1 / self.repetition_penalty),
        }


def checked_sampling(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> Sampling:
    """Parameters as given to `generate`; None stands for no filter.

    Without a temperature it is 1 if top_k, top_p or min_p is given, else 0. Without a seed the operating
    system gives one.

    Raises:
        RuntimeFailure: a value out of its range, or not a number.
    """
    if temperature is None:
        temperature = 0.0 if (top_k, top_p, min_p) == (None, None, None) else 1.0
    result = Sampling(
        temperature=_number("temperature", temperature),
        top_k=_whole("top_k", 0 if top_k is None else top_k),
        top_p=_number("top_p", 1.0 if top_p is None else top_p),
        min_p=_number("min_p", 0.0 if min_p is None else min_p),
        repetition_penalty=_number(
            "repetition_penalty", 1.0 if repetition_penalty is None else repetition_penalty
        ),
        seed=_whole("seed", secrets.randbits(SEED_BITS) if seed is None else seed),
    )
    for name, good, hint in (
        ("temperature", result.temperature >= 0, "give 0 (greedy) or more"),
        ("top_k", result.top_k >= 0, "give 0 (no limit) or more"),
        ("top_p", 0 < result.top_p <= 1, "give more than 0 and at most 1 (no limit)"),
        ("min_p", 0 <= result.min_p <= 1, "give a number from 0 (no limit) to 1"),
        ("repetition_penalty", result.repetition_penalty > 0, "give more than 0; 1 is no penalty"),
        ("seed", 0 <= result.seed < 2**64, "give a number from 0 to 2^64 - 1"),
    ):
        if not good:
            raise RuntimeFailure(name, f"is {getattr(result, name)}", hint)
    return result


def require_words(words: Mapping[str, int], sampling: Sampling) -> None:
    """Refuse to sample where the artifact has no kernels for it.

    Raises:
        RuntimeFailure: it was compiled before there were any.
    """
    if sampling.mode != GREEDY and "sampling" not in words:
        raise RuntimeFailure(
            "generate", "cannot sample with this artifact", "compile the model again, or generate greedily"
        )


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RuntimeFailure(name, f"is {value!r}", "give a finite number")
    return number


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise RuntimeFailure(name, f"is {value!r}", "give a whole number") from None


def _f32_bits(value: float) -> int:
    """The bits of a positive number as f32, kept normal and finite."""
    return int(np.float32(min(max(value, _F32_MIN), _F32_MAX)).view(np.uint32))
