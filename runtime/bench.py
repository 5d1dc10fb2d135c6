"""Measures a language model as llama-bench does: prompts of given lengths, tokens at given depths."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from .errors import RuntimeFailure
from .session import Session

WARM_UP_SECONDS = 0.3

Settings = tuple[tuple[str, float], ...]
"""Arguments of `Session.generate` by name, in the order given."""


@dataclass(frozen=True, slots=True)
class Trial:
    """`n_prompt` tokens fed, or `n_generated` tokens generated, with `depth` tokens in the cache before.

    `sampling`: arguments of `Session.generate` that are not its defaults.
    """

    n_prompt: int
    n_generated: int
    depth: int
    sampling: Settings = ()

    @property
    def name(self) -> str:
        """llama-bench's: pp512, tg128 @ d4096; tg128 top_p=0.9."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_generated}"
        if self.sampling:
            name += " " + ",".join(f"{key}={value:g}" for key, value in self.sampling)
        return f"{name} @ d{self.depth}" if self.depth else name


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens per second of each repetition, by the clock on the wall, tokens in Python's hands."""

    test: Trial
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.samples)

    @property
    def deviation(self) -> float:
        """The standard deviation of the samples; 0 of a single one."""
        return stdev(self.samples) if len(self.samples) > 1 else 0.0


def plan(
    prompts: Iterable[int],
    generated: Iterable[int],
    depths: Iterable[int],
    samplings: Iterable[Settings] = (),
) -> list[Trial]:
    """The tests of -p, -n and -d, in llama-bench's order; a length of 0 is no test.

    Every -n is greedy first, and then with each of `samplings`.
    """
    samplings = ((), *samplings)
    tests = []
    for depth in depths:
        tests += [Trial(n, 0, depth) for n in prompts if n]
        tests += [Trial(0, n, depth, sampling) for n in generated if n for sampling in samplings]
    return tests


def check_fits(tests: Sequence[Trial], capacity: int) -> None:
    """Refuse a test that the KV cache does not hold.

    Raises:
        RuntimeFailure: with the test's name.
    """
    for test in tests:
        if test.depth + max(test.n_prompt, test.n_generated) + 2 > capacity:
            raise RuntimeFailure(
                f"test {test.name}",
                f"does not fit the cache of {capacity} positions",
                "give smaller -p, -n and -d, or compile with a larger --max-length",
            )


class Bench:
    """Runs tests on a session with random tokens, the same ones every time."""

    def __init__(self, session: Session, vocab_size: int, tokens_per_submit: int) -> None:
        self._session = session
        self._vocab_size = vocab_size
        self.tokens_per_submit = tokens_per_submit

    def warm_up(self) -> None:
        """Generate until the clocks are up and every kernel has run."""
        end = time.perf_counter() + WARM_UP_SECONDS
        while True:
            self._session.reset()
            self._feed(min(16, (self._session.capacity or 16) // 2))
            self._generate(8)
            if time.perf_counter() > end:
                return

    def run(self, test: Trial, repeats: int) -> Result:
        """One unmeasured repetition, then `repeats` measured ones."""
        self.warm_up()
        samples = [self.once(test) for _ in range(repeats + 1)]
        return Result(test, tuple(samples[1:]))

    def go_to(self, depth: int) -> None:
        """A sequence of `depth` tokens, all in the cache."""
        self._session.reset()
        if depth:
            self._feed(depth)

    def prompt(self, n: int) -> list[int]:
        """`n` random tokens, the same ones every time."""
        ids: list[int] = np.random.default_rng(n).integers(0, self._vocab_size, n).tolist()
        return ids

    def tokens(self, prompt: Sequence[int], n: int) -> list[int]:
        """The `n` most likely tokens after `prompt`."""
        self._session.reset()
        return list(self._session.generate(prompt, n, stop_tokens=()))

    def once(self, test: Trial) -> float:
        """Tokens per second of one repetition."""
        self.go_to(test.depth if test.n_prompt or test.depth else 1)
        start = time.perf_counter()
        if test.n_prompt:
            self._feed(test.n_prompt)
        else:
            self._generate(test.n_generated, **dict(test.sampling))
        return (test.n_prompt or test.n_generated) / (time.perf_counter() - start)

    def _feed(self, n: int) -> None:
        """`n` new tokens into the cache; the one sampled after them is waited for."""
        for _ in self._session.generate(self.prompt(n), 1, stop_tokens=()):
            pass

    def _generate(self, n: int, **sampling: Any) -> None:
        tokens_per_submit = self.tokens_per_submit
        for _ in self._session.generate((), n, (), tokens_per_submit, **sampling):
            pass
