"""Sampling through `generate`: one seed, one text, however it is computed; and arguments that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import FP16, of, shape
from sampling_reference import draw
from webgpu_compile import RuntimeFailure, Session
from webgpu_compile.runtime.programs import Dispatch
from webgpu_compile.runtime.sampling import LOG2_E, Sampling, checked_sampling

SMALL = shape(vocab_size=1263, n_heads=4, n_kv_heads=2, head_size=64)
"""One layer, and two spans of the vocabulary."""

OPTIONS: dict[str, Any] = {"max_length": 120, "prefill_chunks": (16,)}
PROMPT = np.random.default_rng(3).integers(0, SMALL.vocab_size, 21).tolist()
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "all": {"temperature": 1.5, "top_k": 200, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    "greedy with penalty": {"repetition_penalty": 1.5},
}


@pytest.fixture
def small(artifacts: Artifacts) -> Iterator[Session]:
    with load(artifacts) as session:
        yield session


def load(artifacts: Artifacts, variant: str | None = None, **options: Any) -> Session:
    return webgpu_compile.load(artifacts.compile(SMALL, **(OPTIONS | options)), variant=variant)


def generate(session: Session, prompt: list[int], n: int, **options: Any) -> list[int]:
    session.reset()
    return list(session.generate(prompt, n, **({"stop_tokens": [], "seed": 11} | options)))


def logits_behind(session: Session) -> np.ndarray:
    """The f32 logits that the last token was sampled from; `run` gives them rounded to the model's f16."""
    port = next(port for port in session._variant.programs["decode"].outputs if port.name == "logits")
    assert port.storage == "f32"
    (data,) = session._readback.run([], [(port.buffer, 0, port.nbytes)])
    return np.frombuffer(data, np.float32, SMALL.vocab_size)


# ------------------------------------------------------------------ one seed, one text


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_per_submit(small: Session, name: str) -> None:
    texts = [generate(small, PROMPT, 70, tokens_per_submit=n, **SETTINGS[name]) for n in (1, 8, 32)]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 70
    assert len(set(texts[0])) > 20


@pytest.mark.parametrize("name", SETTINGS)
def test_host_driven(artifacts: Artifacts, small: Session, name: str) -> None:
    expected = generate(small, PROMPT, 40, **SETTINGS[name])
    with load(artifacts, sequence_length="host") as host:
        assert generate(host, PROMPT, 40, **SETTINGS[name]) == expected


@pytest.mark.parametrize("variant", ["f16-subgroups", "portable"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_token_is_the_references(artifacts: Artifacts, name: str, variant: str) -> None:
    """Whatever the variant: of its own logits, the token that the reference draws behind that history."""
    sampling = checked_sampling(**SETTINGS[name], seed=11)
    with load(artifacts, variant=variant, variants=("f16-subgroups", "portable")) as session:
        assert session.variant == variant
        text = generate(session, PROMPT, 30, **SETTINGS[name])
        session.reset()
        known, new = list(PROMPT), PROMPT
        for token in text:  # a call per token: the GPU runs not a step ahead
            assert list(session.generate(new, 1, [], seed=11, **SETTINGS[name])) == [token]
            assert draw(logits_behind(session), known, sampling) == token
            known.append(token)
            new = []


@pytest.mark.parametrize("cut", [2, 7, 16, 19])
def test_calls_in_pieces(small: Session, cut: int) -> None:
    """The place in the text counts the random numbers, not the call; the penalty sees earlier calls."""
    options = {"stop_tokens": [], "seed": 11, **SETTINGS["all"]}
    whole = generate(small, PROMPT, 40, **SETTINGS["all"])
    small.reset()
    small.run({"input_ids": np.array([PROMPT[:cut]])})
    assert list(small.generate(PROMPT[cut:], 13, **options)) == whole[:13]
    iterator = small.generate([], 20, **options)
    assert [next(iterator) for _ in range(5)] == whole[13:18]
    assert list(small.generate([], 22, **options)) == whole[18:40]


def test_seeds(small: Session) -> None:
    one = generate(small, PROMPT, 20, temperature=1, seed=1)
    assert one == generate(small, PROMPT, 20, temperature=1.0, seed=np.int64(1))
    assert one != generate(small, PROMPT, 20, temperature=1, seed=2)
    assert one != generate(small, PROMPT, 20, temperature=1, seed=1 + 2**40)
    assert small.seed == 1 + 2**40


def test_seed_of_the_system(small: Session) -> None:
    texts, seeds = [], []
    for _ in range(3):
        texts.append(generate(small, PROMPT, 20, temperature=1, seed=None))
        seeds.append(small.seed)
    assert len(set(seeds)) == 3
    assert len({tuple(text) for text in texts}) == 3
    assert generate(small, PROMPT, 20, temperature=1, seed=seeds[1]) == texts[1]


def test_stop_tokens_and_reasons(small: Session) -> None:
    free = generate(small, PROMPT, 30, temperature=1)
    at = free.index(free[9])
    assert generate(small, PROMPT, 30, temperature=1, stop_tokens=[free[9]]) == free[:at]
    assert small.finish_reason == "stop"
    assert generate(small, PROMPT, 30, temperature=1) == free
    assert small.finish_reason == "length"


def test_greedy_and_sampling_by_turns(small: Session) -> None:
    """Nothing of one call stays for the next; `run` in between samples nothing either."""
    greedy = generate(small, PROMPT, 30)
    drawn = generate(small, PROMPT, 30, temperature=1)
    assert greedy != drawn
    assert generate(small, PROMPT, 30, temperature=0) == greedy
    assert generate(small, PROMPT, 30, temperature=0, top_k=5, top_p=0.5, min_p=0.1) == greedy
    assert generate(small, PROMPT, 30, top_k=1) == greedy
    assert generate(small, PROMPT, 30, top_p=1e-9) == greedy
    assert generate(small, PROMPT, 30, min_p=1.0) == greedy
    small.reset()
    logits = small.run({"input_ids": np.array([PROMPT])})["logits"]
    assert int(logits[0, -1].argmax()) == greedy[0]
    assert generate(small, PROMPT, 30, temperature=1) == drawn


@pytest.mark.parametrize("changes", [{}, FP16], ids=["int4", "fp16"])
def test_a_tied_model(artifacts: Artifacts, changes: dict[str, Any]) -> None:
    """A penalty ends the repetition that greedy generation of a tied model with random weights falls into."""
    out = artifacts.compile(of("tiny-llama", **changes), **OPTIONS)
    prompt = [token % 1000 for token in PROMPT]
    with webgpu_compile.load(out) as session:
        greedy = generate(session, prompt, 60)
        assert len(set(generate(session, prompt, 60, repetition_penalty=2.0))) > len(set(greedy))


# ------------------------------------------------------------------ what is emitted


def test_three_dispatches_more(artifacts: Artifacts) -> None:
    """Sampling takes three dispatches more than the arg-max, in a program of its own."""
    with load(artifacts) as session:
        kernels = {
            name: [step.kernel for step in program.steps if isinstance(step, Dispatch)]
            for name, program in session._variant.programs.items()
        }
    sampling = ["sample_keys", "sample_weights", "sample_candidates", "sample"]
    for name, found in kernels.items():
        wanted = {"decode": ["sample_greedy"], "logits": []}.get(name.split("_16")[0], sampling)
        assert [kernel for kernel in found if kernel.startswith("sample")] == wanted, name
    assert kernels["decode_sampled"][:-4] == kernels["decode"][:-1]


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: is -0.1; give 0"),
        ({"temperature": float("nan")}, "temperature: is nan; give a finite number"),
        ({"temperature": float("inf")}, "temperature: is inf"),
        ({"temperature": "hot"}, "temperature: is 'hot'"),
        ({"temperature": "1"}, "temperature: is '1'"),
        ({"top_k": -1}, "top_k: is -1"),
        ({"top_k": 1.5}, "top_k: is 1.5; give a whole number"),
        ({"top_p": 0}, "top_p: is 0.0; give more than 0 and at most 1"),
        ({"top_p": 1.01}, "top_p: is 1.01"),
        ({"top_p": [0.5, 0.5]}, "top_p: is [0.5, 0.5]"),
        ({"min_p": -0.5}, "min_p: is -0.5"),
        ({"min_p": 2}, "min_p: is 2.0"),
        ({"repetition_penalty": 0}, "repetition_penalty: is 0.0"),
        ({"repetition_penalty": -1}, "repetition_penalty: is -1.0"),
        ({"seed": 1.0}, "seed: is 1.0; give a whole number"),
        ({"seed": "1"}, "seed: is '1'"),
        ({"seed": -1}, "seed: is -1"),
        ({"seed": 2**64}, "seed: is 18446744073709551616"),
    ],
)
def test_bad_parameters(small: Session, options: dict[str, Any], message: str) -> None:
    """At once, in one sentence, and the sequence stays as it was."""
    with pytest.raises(RuntimeFailure) as caught:
        small.generate(PROMPT, 5, **options)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert small.tokens == []


def test_none_is_the_neutral_value() -> None:
    assert checked_sampling(seed=5) == Sampling(seed=5)
    assert checked_sampling(seed=5).mode == 0
    for option in ({"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}):
        assert checked_sampling(**option, seed=5) == Sampling(1.0, seed=5, **option)
    assert checked_sampling(temperature=0, top_k=5, seed=5).mode == 0
    assert checked_sampling(repetition_penalty=1.5, seed=5) == Sampling(repetition_penalty=1.5, seed=5)


def test_words() -> None:
    """As docs/architecture.md has them; the JavaScript runtime writes the same."""
    sampling = Sampling(0.5, 40, 0.25, 0.125, 2.0, seed=0x1_0000_0002)
    f32 = np.array([2**27 * LOG2_E, 2.0, 0.5], np.float32).view(np.uint32).tolist()
    assert sampling.words() == {
        "sampling": 1,
        "seed_low": 2,
        "seed_high": 1,
        "inverse_temperature": f32[0],
        "top_k": 40,
        "top_p": 2**30,
        "min_p": 2**28,
        "repetition_penalty": f32[1],
        "inverse_repetition_penalty": f32[2],
    }
    assert Sampling(1, top_p=1).words()["top_p"] == 0
    assert Sampling(1, top_p=1 - 1e-15).words()["top_p"] == 2**32 - 1
    assert Sampling(1, top_p=1e-15).words()["top_p"] == 1
    assert [Sampling(1, min_p=p).words()["min_p"] for p in (0, 1e-15, 1)] == [1, 1, 2**31]
