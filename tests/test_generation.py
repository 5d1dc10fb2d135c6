"""Generation: the same tokens however it is driven, and nothing written where it should not be."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import FAMILIES, FP16, GRAPH, MASKS, MOBIUS, long_rope, of, shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import OrtDecoder, greedy_mismatch
from webgpu_compile import RuntimeFailure, Session
from webgpu_compile.models import DecoderConfig
from webgpu_compile.runtime.generate import CapacityWarning

CHUNKS = (16, 64)
N_TOKENS = 300
CAPACITY = 400

# Untied models: a tied one soon repeats itself, and repetition hides mistakes.
MODELS: dict[str, tuple[DecoderConfig, dict[str, Any]]] = {
    "llama-int8": (of("tiny-llama-untied"), {}),
    "mistral-int4": (of("tiny-mistral", mask=GRAPH), {"activations": "float"}),
    "phi3-fp16": (of("tiny-phi3", mask=MOBIUS, **FP16), {}),
    "phi4-int8": (long_rope(original=100, context=512, tied=False), {}),
}
SMALL = shape(vocab_size=263, n_heads=4, n_kv_heads=2, head_size=64, sliding_window=20)
"""One layer, for what does not depend on the model."""


def prompt_of(config: DecoderConfig, n: int) -> list[int]:
    return np.random.default_rng(n + 1).integers(0, config.vocab_size, n).tolist()


def load(artifacts: Artifacts, name: str, **options: Any) -> Session:
    config, own = MODELS[name]
    return webgpu_compile.load(
        artifacts.compile(config, **({"max_length": CAPACITY, "prefill_chunks": CHUNKS} | own | options))
    )


def generate(session: Session, prompt: list[int], n: int = N_TOKENS, **options: Any) -> list[int]:
    session.reset()
    return list(session.generate(prompt, n, **({"stop_tokens": []} | options)))


@pytest.fixture(scope="module")
def expected(artifacts: Artifacts) -> Any:
    """(prompt, 300 tokens) of a model, one token per submit."""

    @cache
    def made(name: str) -> tuple[list[int], list[int]]:
        prompt = prompt_of(MODELS[name][0], 37)
        with load(artifacts, name) as session:
            tokens = generate(session, prompt, tokens_per_submit=1)
        assert len(tokens) == N_TOKENS
        assert len(set(tokens)) > 100  # no text that any mistake would repeat
        return prompt, tokens

    return made


@pytest.fixture
def small(artifacts: Artifacts) -> Iterator[Session]:
    with load_small(artifacts) as session:
        yield session


def load_small(artifacts: Artifacts, **options: Any) -> Session:
    out = artifacts.compile(SMALL, **({"max_length": 80, "prefill_chunks": (16,)} | options))
    return webgpu_compile.load(out)


def state_of(session: Session) -> dict[str, bytes]:
    """Every byte of the buffers that outlive a replay, by name."""
    assert session._resources is not None
    buffers = session.manifest.buffers
    indices = [i for i, b in enumerate(buffers) if b.kind == "state" and i in session._resources.buffers]
    data = session._readback.run([], [(i, 0, buffers[i].nbytes) for i in indices])
    return {buffers[i].name: part for i, part in zip(indices, data, strict=True)}


def caches_of(session: Session) -> dict[str, np.ndarray]:
    """The KV caches as u16 or u32 words [kv_heads, capacity, head_size]; f16 is 0 exactly where unwritten."""
    ports = {port.name: port for port in session._variant.programs["decode"].outputs}
    state = state_of(session)
    return {
        name: np.frombuffer(
            state[session.manifest.buffers[port.buffer].name],
            np.uint16 if port.storage == "f16" else np.uint32,
            int(np.prod(port.shape)),
        ).reshape(port.shape[1:])
        for name, port in ports.items()
        if name.startswith("present")
    }


def assert_written(session: Session, n: int) -> None:
    """The first `n` positions of every cache are written, and no other is: a new session's are zeros."""
    for name, words in caches_of(session).items():
        assert words[:, :n].any(axis=2).all(), f"{name}: a position under {n} is empty"
        assert not words[:, n:].any(), f"{name}: written at position {n} or beyond"


# ------------------------------------------------------------------ 300 tokens


@pytest.mark.parametrize("tokens_per_submit", [8, 32])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_per_submit(artifacts: Artifacts, expected: Any, name: str, tokens_per_submit: int) -> None:
    prompt, tokens = expected(name)
    with load(artifacts, name) as session:
        assert generate(session, prompt, tokens_per_submit=tokens_per_submit) == tokens
        assert session.finish_reason == "length"
        assert session.tokens == prompt + tokens


@pytest.mark.parametrize("name", MODELS)
def test_software_variant(artifacts: Artifacts, name: str) -> None:
    """300 tokens are the same in any number per submission, and wherever the prompt is cut.

    Chunks and single positions run the same kernels, so the logits are equal bit for bit.
    """
    prompt = prompt_of(MODELS[name][0], 37)
    with load(artifacts, name, variants=("software",)) as session:
        assert session.variant_reason == "software: made for GPUs that a CPU plays"
        tokens = generate(session, prompt, tokens_per_submit=8)
        assert generate(session, prompt, tokens_per_submit=32) == tokens
        assert_written(session, len(prompt) + N_TOKENS - 1)  # the last token is not fed
        session.reset()
        whole = session.run({"input_ids": np.array([prompt])})["logits"][0]
        for cut in (1, 16, 36):
            session.reset()
            parts = [
                session.run({"input_ids": np.array([p])})["logits"][0] for p in (prompt[:cut], prompt[cut:])
            ]
            assert np.array_equal(np.concatenate(parts), whole)
            assert list(session.generate([], 40, [])) == tokens[:40]


@pytest.mark.parametrize("name", MODELS)
def test_indirect_attention(artifacts: Artifacts, expected: Any, name: str) -> None:
    prompt, tokens = expected(name)
    with load(artifacts, name, attention_dispatch="indirect") as session:
        steps = session._variant.programs["decode"].steps
        assert sum(getattr(step, "indirect", None) is not None for step in steps) >= MODELS[name][0].n_layers
        assert generate(session, prompt) == tokens


@pytest.mark.parametrize("name", MODELS)
def test_host_driven(artifacts: Artifacts, expected: Any, name: str) -> None:
    """The same kernels, told the lengths by the host: equal tokens, and logits equal bit for bit."""
    prompt, tokens = expected(name)
    ids = [*prompt, *tokens]
    cuts = [37, 38, 39, 100, 101, 200]
    with load(artifacts, name) as gpu, load(artifacts, name, sequence_length="host") as host:
        assert host.manifest.sequence.driven_by == "host"  # type: ignore[union-attr]
        assert generate(host, prompt) == tokens
        gpu.reset()
        host.reset()
        for a, b in zip([0, *cuts], [*cuts, 230], strict=True):
            given = {"input_ids": np.array([ids[a:b]])}
            one, other = gpu.run(given)["logits"], host.run(given)["logits"]
            assert np.array_equal(one, other), f"rows {a} to {b}"
        # and behind tokens that each of them decoded itself
        for session in (gpu, host):
            generate(session, prompt, 60)
        given = {"input_ids": np.array([[7]])}
        assert np.array_equal(gpu.run(given)["logits"], host.run(given)["logits"])
        fed = len(prompt) + 60
        other_caches = caches_of(host)
        for port, words in caches_of(gpu).items():
            assert np.array_equal(words[:, :fed], other_caches[port][:, :fed]), port


@pytest.mark.parametrize("name", ["llama-int8", "mistral-int4"])
def test_logits_do_not_depend_on_chunks(artifacts: Artifacts, name: str) -> None:
    """Bit for bit: the kernels for few rows and those for many add in one order."""
    ids = np.array([prompt_of(MODELS[name][0], 120)])
    with load(artifacts, name) as session:
        whole = session.run({"input_ids": ids})["logits"]
        for cuts in ([0, 5, 21, 119 - 40, 120], [0, 64, 66, 70, 120]):
            session.reset()
            parts = [session.run({"input_ids": ids[:, a:b]})["logits"] for a, b in pairwise(cuts)]
            assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cut", [1, 2, 15, 16, 17, 35, 36])
def test_prompt_split(artifacts: Artifacts, expected: Any, name: str, cut: int) -> None:
    """The first part through run(), or through a generate() that makes no token.

    A position alone is decode's, which writes int8 in shorter blocks than chunks do: of int8 models it has
    other logits by their rounding, and then a token may be another one.
    """
    prompt, tokens = expected(name)
    alone = cut in (1, 36) and name.endswith("int8")
    with load(artifacts, name) as session:
        if alone:
            whole = session.run({"input_ids": np.array([prompt])})["logits"][0, -1].astype(np.float32)
            session.reset()
            session.run({"input_ids": np.array([prompt[:cut]])})
            logits = session.run({"input_ids": np.array([prompt[cut:]])})["logits"][0, -1]
            assert float(np.abs(logits.astype(np.float32) - whole).max()) < 0.05 * float(np.abs(whole).max())
            return
        session.run({"input_ids": np.array([prompt[:cut]])})
        assert list(session.generate(prompt[cut:], 100, [])) == tokens[:100]
        session.reset()
        assert list(session.generate(prompt[:cut], 0, [])) == []
        assert list(session.generate(prompt[cut:], 40, [])) == tokens[:40]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_pieces_continue_the_sequence(artifacts: Artifacts, expected: Any, pieces: list[int]) -> None:
    """run() and generate() by turns, over prompt and generated tokens alike.

    Generated tokens that are fed again go through the chunks' kernels, which sum in another order than
    decode's. Float activations keep that at 1e-6, far under any lead here; int8 rounding would make it 1e-2.
    """
    prompt, tokens = expected("phi3-fp16")
    text = prompt + tokens
    session = _kept_session(artifacts)
    session.reset()
    at = 0
    for i, n in enumerate(pieces):
        known = at >= len(prompt) and i % 2
        if known:
            assert list(session.generate([], n, [], tokens_per_submit=1 + n % 9)) == text[at : at + n]
        else:
            session.run({"input_ids": np.array([text[at : at + n]])}, None if i % 3 else ())
        at += n
    assert session.tokens == text[:at]
    rest = prompt[at:]
    assert list(session.generate(rest, 20, [])) == text[at + len(rest) :][:20]


@cache
def _kept_session(artifacts: Artifacts) -> Session:
    return load(artifacts, "phi3-fp16")


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_onnx_runtimes(artifacts: Artifacts, expected: Any, name: str) -> None:
    """Greedy tokens equal, wherever the two best logits differ by more than the tolerance.

    The reference is fed our tokens, so that all 300 are compared and not only those up to the first tie.
    """
    config, options = MODELS[name]
    prompt, tokens = expected(name)
    level = 0 if options.get("activations") == "float" else config.accuracy_level
    reference = OrtDecoder(artifacts.model(replace(config, accuracy_level=level)))
    rows = [reference.run(prompt)[-1]] + [reference.run([token])[-1] for token in tokens[:-1]]
    tolerance = 0.1 if name.endswith("int8") else 0.02
    behind = [float(row.max() - row[token]) for row, token in zip(rows, tokens, strict=True)]
    assert max(behind) <= 2 * tolerance  # each of the two logits may be off by the tolerance
    assert greedy_mismatch([int(row.argmax()) for row in rows], tokens, np.array(rows), 2 * tolerance) is None


# ------------------------------------------------------------------ stopping


@pytest.mark.parametrize("at", [0, 1, 7, 8, 9, 20, 31])
@pytest.mark.parametrize("tokens_per_submit", [1, 8, 32])
def test_stop_token(artifacts: Artifacts, at: int, tokens_per_submit: int) -> None:
    """At the first token, inside a batch, at its ends; and the rest of the batch writes nothing."""
    prompt = prompt_of(SMALL, 21)
    with load_small(artifacts) as session:
        free = generate(session, prompt, 50)
    first = free.index(free[at])
    with load_small(artifacts) as session:
        made = list(session.generate(prompt, 50, [free[at]], tokens_per_submit))
        assert made == free[:first]
        assert session.finish_reason == "stop"
        assert session.tokens == prompt + made
        assert_written(session, len(prompt) + len(made))


def counters_of(session: Session) -> dict[str, int]:
    """The words that say where the sequence is; a seed, say, may differ between sessions."""
    state = session.manifest.sequence
    assert state is not None
    words = np.frombuffer(state_of(session)[session.manifest.buffers[state.buffer].name], np.uint32)
    return {name: int(words[state.words[name]]) for name in ("past_length", "n_tokens", "limit", "stop")}


def test_after_a_stop_nothing_changes(artifacts: Artifacts) -> None:
    """More replays change no byte; 32 tokens per submit leave what one token per submit leaves."""
    prompt = prompt_of(SMALL, 21)
    with load_small(artifacts) as session:
        stop = [generate(session, prompt, 20)[11]]
    states, counters = [], []
    for tokens_per_submit in (1, 32):
        with load_small(artifacts) as session:
            list(session.generate(prompt, 50, stop, tokens_per_submit))
            resources = session._resources
            assert resources is not None
            before = state_of(session)
            recorder, decode = resources.recorder, resources.programs["decode"]
            recorder.wait(recorder.submit([decode] * 40))
            after = state_of(session)
            assert [name for name in before if before[name] != after[name]] == []
            states.append(before)
            counters.append(counters_of(session))
    assert counters[0] == counters[1]
    sequence = session.manifest.buffers[session.manifest.sequence.buffer].name  # type: ignore[union-attr]
    assert [name for name in states[0] if states[0][name] != states[1][name] and name != sequence] == []


def test_several_stop_tokens(small: Session) -> None:
    prompt = prompt_of(SMALL, 5)
    free = generate(small, prompt, 40)
    firsts = sorted({free.index(free[i]) for i in (5, 12, 30)})
    stops = [free[i] for i in reversed(firsts)]
    assert generate(small, prompt, 40, stop_tokens=stops) == free[: firsts[0]]
    unused = next(token for token in range(SMALL.vocab_size) if token not in free)
    assert generate(small, prompt, 40, stop_tokens=[unused] * 20) == free
    assert small.finish_reason == "length"


def test_after_a_stop_the_sequence_goes_on(small: Session) -> None:
    """The stop token is not part of it; the next prompt follows the token before."""
    prompt = prompt_of(SMALL, 18)
    free = generate(small, prompt, 30)
    at = free.index(free[9])
    made = generate(small, prompt, 30, stop_tokens=[free[at]])
    more = list(small.generate([3, 4, 5], 10, []))
    assert more == generate(small, [*prompt, *made, 3, 4, 5], 10)


# ------------------------------------------------------------------ the end of the cache


@pytest.mark.parametrize("driven_by", ["gpu", "host"])
@pytest.mark.parametrize(("n_prompt", "tokens_per_submit"), [(1, 8), (37, 1), (38, 32), (79, 8), (80, 8)])
def test_capacity(artifacts: Artifacts, n_prompt: int, tokens_per_submit: int, driven_by: str) -> None:
    """80 positions hold 80 tokens, and the logits of the last give one token more."""
    prompt = prompt_of(SMALL, n_prompt)
    with load_small(artifacts, sequence_length=driven_by) as session:
        assert session.capacity == 80
        with pytest.warns(CapacityWarning, match="full at 80 positions"):
            made = list(session.generate(prompt, None, [], tokens_per_submit))
        assert session.finish_reason == "capacity"
        assert len(made) == 81 - n_prompt
        assert_written(session, 80)
        before = state_of(session)
        with pytest.raises(RuntimeFailure, match=r"capacity|cache"):
            session.run({"input_ids": np.array([[1]])})
        with pytest.raises(RuntimeFailure, match=r"capacity|cache"):
            session.generate([1], 5)
        assert state_of(session) == before
    with load_small(artifacts, max_length=120) as roomy:  # not a word of the text depends on the capacity
        assert generate(roomy, prompt, 81 - n_prompt) == made


def test_a_chunk_over_the_end_of_the_cache(artifacts: Artifacts) -> None:
    """75 tokens are there and 5 more come as a chunk of 16: its empty rows write nowhere."""
    ids = prompt_of(SMALL, 80)
    with load_small(artifacts) as session, load_small(artifacts, max_length=120) as roomy:
        for decoder in (session, roomy):
            decoder.run({"input_ids": np.array([ids[:75]])})
        before = caches_of(session)
        given = {"input_ids": np.array([ids[75:]])}
        assert np.array_equal(session.run(given)["logits"], roomy.run(given)["logits"])
        assert_written(session, 80)
        assert_written(roomy, 80)
        for name, words in caches_of(session).items():
            assert np.array_equal(words[:, :75], before[name][:, :75]), name


def test_too_long_a_prompt_is_refused(small: Session) -> None:
    before = state_of(small)
    with pytest.raises(RuntimeFailure, match="81"):
        small.run({"input_ids": np.zeros((1, 81), np.int64)})
    with pytest.raises(RuntimeFailure, match="81"):
        small.generate([0] * 81)
    assert state_of(small) == before
    assert small.tokens == []


# ------------------------------------------------------------------ one sequence, several calls


def test_continuation_is_one_long_prompt(small: Session) -> None:
    a, b = prompt_of(SMALL, 19), prompt_of(SMALL, 4)
    first = generate(small, a, 11)
    second = list(small.generate(b, 12, []))
    assert generate(small, [*a, *first, *b], 12) == second


def test_reset_gives_the_same_again(small: Session) -> None:
    """What an earlier, longer text left in the cache does not show."""
    prompt = prompt_of(SMALL, 9)
    logits = small.run({"input_ids": np.array([prompt])})["logits"]
    small.reset()
    tokens = generate(small, prompt, 15)
    generate(small, prompt_of(SMALL, 40), 40)
    assert generate(small, prompt, 15) == tokens
    small.reset()
    assert np.array_equal(small.run({"input_ids": np.array([prompt])})["logits"], logits)


@pytest.mark.parametrize("kept", [0, 1, 16, 29, 30])
def test_rewind(small: Session, kept: int) -> None:
    """Another end of the same beginning, as if nothing else had been there; the cache is not fed again."""
    prompt, other = prompt_of(SMALL, 21), prompt_of(SMALL, 5)[::-1]
    whole = [*prompt, *generate(small, prompt, 9)]
    small.rewind(kept)
    assert small.tokens == whole[:kept]
    logits = small.run({"input_ids": np.array([other])})["logits"]
    tokens = list(small.generate([], 12, []))
    small.reset()
    fresh = small.run({"input_ids": np.array([[*whole[:kept], *other]])})["logits"][:, kept:]
    # Generated tokens went into the cache one by one, and here as a chunk: other orders of summation.
    np.testing.assert_allclose(logits.astype(np.float32), fresh.astype(np.float32), rtol=0, atol=0.01)
    if kept <= len(prompt):
        assert generate(small, [*whole[:kept], *other], 12) == tokens
    known = len(small.tokens)
    with pytest.raises(
        RuntimeFailure, match=f"n_tokens: is {known + 1}; the sequence has {known}: give at most"
    ):
        small.rewind(known + 1)


@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_abandoned_iterator(small: Session, n: int) -> None:
    """The sequence is what was given; what the GPU computed ahead is forgotten."""
    prompt = prompt_of(SMALL, 12)
    free = generate(small, prompt, 45)
    small.reset()
    iterator = small.generate(prompt, 45, [], 8)
    assert [next(iterator) for _ in range(n)] == free[:n]
    assert small.finish_reason is None
    assert list(small.generate([], 10, [])) == free[n : n + 10]
    assert list(iterator) == []  # the new call ended it
    assert small.tokens == prompt + free[: n + 10]
    other = [5, 6]
    assert list(small.generate(other, 5, [])) == generate(small, [*prompt, *free[: n + 10], *other], 5)


def test_run_and_generate_by_turns(small: Session) -> None:
    prompt = prompt_of(SMALL, 10)
    free = generate(small, prompt, 30)
    small.reset()
    logits = small.run({"input_ids": np.array([prompt])})["logits"]
    assert int(logits[0, -1].argmax()) == free[0]
    assert list(small.generate([], 8, [])) == free[:8]
    logits = small.run({"input_ids": np.array([free[8:10]])})["logits"]
    assert logits.shape == (1, 2, SMALL.vocab_size)
    assert logits[0].argmax(axis=1).tolist() == free[9:11]
    assert list(small.generate([free[10]], 12, [])) == free[11:23]
    logits = small.run({"input_ids": np.array([[free[23]]])})["logits"]
    assert int(logits[0, -1].argmax()) == free[24]


@pytest.mark.parametrize(("name", "tolerance"), [("phi3-fp16", 0.01), ("mistral-int4", 0.01)])
def test_present_is_onnx_runtimes_cache(artifacts: Artifacts, name: str, tolerance: float) -> None:
    """Keys and values are about 1 in size, most under 4: f16 spaces those 0.004 apart at most."""
    config, _ = MODELS[name]
    ids = prompt_of(config, 40)
    reference = OrtDecoder(artifacts.model(replace(config, accuracy_level=0)))
    names = [f"present.{layer}.{kind}" for layer in range(config.n_layers) for kind in ("key", "value")]
    with load(artifacts, name) as session:
        for piece in (ids[:37], ids[37:38], ids[38:]):
            reference.run(piece)
            present = session.run({"input_ids": np.array([piece])}, ["logits", *names])
        for port in names:
            expected = reference.past[port.replace("present", "past_key_values")]
            assert present[port].shape == expected.shape == (1, config.n_kv_heads, 40, config.head_size)
            assert present[port].dtype == expected.dtype
            difference = np.abs(present[port].astype(np.float32) - expected.astype(np.float32))
            assert difference.max() <= tolerance, port


# ------------------------------------------------------------------ what the compiler promises


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_memcpy_and_few_dispatches(artifacts: Artifacts, family: str, mask: Any) -> None:
    """MemcpyToHost 1 or more before and none after, no node on the host.

    Dispatches: at most 8 per layer and 4 around the layers. int8 activations, the default for 4-bit models,
    take 6 per layer, and 10 where a CPU plays the GPU. Sampling takes 3 more, in a program of its own.
    """
    for changes in ({"n_layers": 1}, {"n_layers": 3}, {"n_layers": 3, **FP16}):
        for activations in ("auto", "float"):
            config = of(family, mask=mask, **changes)
            result = webgpu_compile.compile(
                artifacts.model(config, weights=False), "unused", check=True, activations=activations
            )
            counts = result.device.counts
            assert counts.memcpy_before >= (0 if mask == GRAPH else 1)
            assert counts.memcpy_after == 0
            assert counts.host_nodes_after == 0
            for variant, programs in result.programs.items():
                kernels = {program.name: len(program.kernels) for program in programs}
                int8 = activations == "auto" and "precision" not in changes
                per_layer = 8 if not int8 else 10 if variant == "software" else 6
                assert kernels["decode"] <= per_layer * config.n_layers + 4, (variant, changes, activations)
                assert kernels["decode_sampled"] == kernels["decode"] + 3


def files_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_same_input_gives_the_same_bytes(artifacts: Artifacts, tmp_path: Path) -> None:
    """In this process again, and in others whose sets and dictionaries of strings are ordered otherwise."""
    model = artifacts.model(long_rope(qkv_bias=True, mask=GRAPH))
    options = {"max_length": 64, "prefill_chunks": (16,)}
    for name in ("first", "second"):
        webgpu_compile.compile(model, tmp_path / name, **options)
    expected = files_of(tmp_path / "first")
    assert len(expected) > 20
    script = f"import sys, webgpu_compile; webgpu_compile.compile(sys.argv[1], sys.argv[2], **{options!r})"
    for seed in ("0", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(model), str(tmp_path / f"seed-{seed}")]
        subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    for name in ("second", "seed-0", "seed-12345"):
        files = files_of(tmp_path / name)
        assert files.keys() == expected.keys()
        assert [file for file in files if files[file] != expected[file]] == []


def test_nothing_warns(artifacts: Artifacts) -> None:
    """Neither compiling nor a generation that ends by itself says anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load_small(artifacts) as session:
            generate(session, prompt_of(SMALL, 3), 5)
