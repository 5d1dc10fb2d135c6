"""Sampling on the GPU draws the reference's token, and each in the right number.

The kernels run as in a captured program: every replay appends a token, and the place of a token is the
counter of its random number, so one set of logits gives as many independent draws as there are replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import tint
import wgpu
from gpu import ALL_TARGETS, device
from sampling_reference import draw, penalised, philox, probabilities, softmax, surviving, weights_of
from webgpu_compile.compiler.emit.wgsl import render
from webgpu_compile.compiler.lowering.builder import Builder, DecoderShape
from webgpu_compile.compiler.lowering.sampling import sample, spans
from webgpu_compile.compiler.passes.functions import DOMAIN
from webgpu_compile.compiler.program import DType, Program, Role
from webgpu_compile.compiler.sequence import ARGMAX_INDICES, ARGMAX_VALUES, MAX_STOP_TOKENS, WORDS
from webgpu_compile.compiler.target import SPEC_LIMITS, TARGETS, Target
from webgpu_compile.runtime.sampling import Sampling

CAPACITY = 5000
PORTABLE, SOFTWARE = TARGETS["portable"], TARGETS["software"]
INF = np.float32(np.inf)


def program_of(vocab_size: int, driven_by: str = "gpu", target: Target = PORTABLE) -> Program:
    """Arg-max and sampling over a row of logits, as at the end of a decode program."""
    decoder = DecoderShape(
        capacity=CAPACITY,
        vocab_size=vocab_size,
        token_input="input_ids",
        caches=(),
        logits="logits",
        driven_by=driven_by,
    )
    builder = Builder(gs.Graph(), {}, target, decoder, 1)
    builder.tensor("logits", DType.F32, (1, 1, vocab_size), Role.OUTPUT)
    logits, *parts = map(gs.Variable, ("logits", ARGMAX_VALUES, ARGMAX_INDICES))
    builder.lower_node(gs.Node("ArgMaxParts", "argmax", inputs=[logits], outputs=parts, domain=DOMAIN))
    builder.add(*sample(builder))
    return builder.program("decode", (), ("logits",))


class Sampler:
    """The kernels of one vocabulary size on the GPU."""

    def __init__(self, vocab_size: int, driven_by: str = "gpu", target: Target = PORTABLE) -> None:
        self.vocab_size = vocab_size
        program = program_of(vocab_size, driven_by, target)
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        self.buffers = {
            name: device().create_buffer_with_data(data=b"\xa5" * (tensor.nbytes + 256), usage=usage)
            for name, tensor in program.tensors.items()
        }
        self.steps = []
        for kernel in program.kernels:
            module = device().create_shader_module(code=render(kernel, target))
            compute = {"module": module, "entry_point": "main"}
            pipeline = device().create_compute_pipeline(layout="auto", compute=compute)
            entries = [
                {
                    "binding": i,
                    "resource": {
                        "buffer": self.buffers[b.tensor],
                        "offset": 0,
                        "size": program.tensors[b.tensor].nbytes,
                    },
                }
                for i, b in enumerate(kernel.bindings)
            ]
            group = device().create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
            self.steps.append((pipeline, group, kernel.grid))
        self.guards = {name: tensor.nbytes for name, tensor in program.tensors.items()}

    def words(self, history: Sequence[int], sampling: Sampling, **changes: int) -> np.ndarray:
        n = len(history)
        values = dict.fromkeys(WORDS, 0) | sampling.words()
        values |= {"past_length": n - 1, "length": 1, "total_length": n, "n_tokens": n, "limit": CAPACITY}
        return np.array([*(values | changes).values(), *[0] * (MAX_STOP_TOKENS - 1)], np.uint32)

    def run(
        self, logits: np.ndarray, history: Sequence[int], sampling: Sampling, n: int = 1, **changes: int
    ) -> list[int]:
        """`n` replays; the tokens that they append."""
        return self.run_words(logits, history, self.words(history, sampling, **changes), n)

    def run_words(
        self, logits: np.ndarray, history: Sequence[int], words: np.ndarray, n: int = 1
    ) -> list[int]:
        queue = device().queue
        queue.write_buffer(self.buffers["logits"], 0, np.ascontiguousarray(logits, np.float32))
        queue.write_buffer(self.buffers["sequence"], 0, words)
        tokens = np.full(CAPACITY + 1, -1, np.int32)
        tokens[: len(history)] = history
        queue.write_buffer(self.buffers["tokens"], 0, tokens)
        encoder = device().create_command_encoder()
        compute = encoder.begin_compute_pass()
        for _ in range(n):
            for pipeline, group, grid in self.steps:
                compute.set_pipeline(pipeline)
                compute.set_bind_group(0, group)
                compute.dispatch_workgroups(*grid)
        compute.end()
        queue.submit([encoder.finish()])
        made = np.frombuffer(queue.read_buffer(self.buffers["tokens"]), np.int32)
        return [int(token) for token in made[len(history) : len(history) + n]]

    def n_candidates(self) -> int:
        """The length of the last list."""
        return int(np.frombuffer(device().queue.read_buffer(self.buffers["sample/selection"]), np.uint32)[0])

    def check_guards(self) -> None:
        for name, nbytes in self.guards.items():
            data = bytes(device().queue.read_buffer(self.buffers[name], nbytes))
            assert data == b"\xa5" * len(data), f"{name}: written past its end"


_sampler = cache(Sampler)


def sampler(vocab_size: int, driven_by: str = "gpu", target: Target = PORTABLE) -> Sampler:
    """One for the same arguments, however they are given."""
    return _sampler(vocab_size, driven_by, target)


def logits_of(vocab_size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng([vocab_size, seed]).normal(0, spread, vocab_size).astype(np.float32)


def assert_exact(
    logits: np.ndarray,
    sampling: Sampling,
    n: int = 20,
    history: Sequence[int] = (0,),
    name: object = "",
    target: Target = PORTABLE,
) -> list[int]:
    """`n` draws behind `history`, each the reference's. Returns them."""
    made = sampler(len(logits), target=target).run(logits, history, sampling, n)
    known = list(history)
    for token in made:
        assert token == draw(logits, known, sampling), f"{name} {sampling} behind {len(known)} tokens"
        known.append(token)
    return made


PARAMETERS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 5.0},
    "top-k": {"top_k": 7},
    "top-k 1": {"top_k": 1},
    "top-p": {"top_p": 0.9},
    "low top-p": {"top_p": 0.05},
    "min-p": {"min_p": 0.1},
    "top-k, top-p": {"top_k": 50, "top_p": 0.8},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
    "penalty": {"repetition_penalty": 1.3},
    "all and penalty": {"top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.3},
}
SIZES = (1, 2, 3, 255, 256, 257, 1023, 1024, 1025, 8192, 32003, 128256, 200003, 262145)


def parameters(name: str, **more: float) -> Sampling:
    return Sampling(**({"temperature": 1.0, "seed": 0x123456789ABCDEF} | PARAMETERS[name] | more))


# ------------------------------------------------------------------ the same token as the reference


@pytest.mark.parametrize("vocab_size", SIZES)
def test_every_size(vocab_size: int) -> None:
    history = [t % vocab_size for t in (3, 1, 4, 1, 5, 9, 2, 6)]
    logits = logits_of(vocab_size)
    for name in PARAMETERS:
        assert_exact(logits, parameters(name), 3, history, name)
    sampler(vocab_size).check_guards()


@pytest.mark.parametrize("name", PARAMETERS)
def test_random_cases(name: str) -> None:
    """Random logits of many shapes, temperatures and cuts over one vocabulary."""
    rng = np.random.default_rng(len(name))
    for case in range(25):
        logits = logits_of(1501, case, spread=float(rng.choice([0.01, 0.5, 3, 10, 80])))
        logits = np.round(logits, int(rng.integers(0, 7)))  # ties, from none to most
        sampling = parameters(name, seed=int(rng.integers(2**63)))
        history = rng.integers(0, 1501, int(rng.integers(1, 700))).tolist()
        assert_exact(logits, sampling, 4, history, case)


def test_cuts_at_every_place() -> None:
    """top-k and top-p at each of the few tokens that matter, and beyond."""
    logits = logits_of(300, 5)
    for k in (1, 2, 3, 10, 100, 299, 300, 301, 2**31, 2**40):
        assert_exact(logits, Sampling(1.5, top_k=k, seed=k), 10)
    p = np.cumsum(np.sort(softmax(logits.astype(np.float64)))[::-1])
    for top_p in (1e-12, 1e-6, *(p[:12] - 1e-6), *(p[:12] + 1e-6), 0.999, 0.999999, 1 - 1e-12):
        assert_exact(logits, Sampling(1.0, top_p=float(top_p), seed=3), 6)
    for min_p in (1e-12, 1e-3, 0.5, 0.999999, 1.0):
        assert_exact(logits, Sampling(1.0, min_p=min_p, seed=4), 6)


LISTS: dict[str, dict[str, float]] = {
    "top-k": {"top_k": 100},
    "top-p": {"top_p": 0.6},
    "both": {"top_k": 250, "top_p": 0.6},
    "long both": {"top_k": 20000, "top_p": 0.9},
}


@pytest.mark.parametrize("target", [PORTABLE, SOFTWARE], ids=["portable", "software"])
@pytest.mark.parametrize("vocab_size", [16, 17, 18, 256, 257, 258, 1025, 30000])
def test_lists_of_every_length(vocab_size: int, target: Target) -> None:
    """All in a bin, the greatest in one above: a candidate a thread, one more, many; ties of all kinds."""
    steps = np.random.default_rng(vocab_size).permutation(vocab_size).astype(np.float32) / vocab_size
    cases = {
        "one bin": 3 + 0.005 * steps,
        "around 0": 0.01 * (steps - 0.5),
        "ties": 3 + 0.005 * np.floor(5 * steps),
        "equal": np.full(vocab_size, -1.5),
        "a peak": np.where(steps == 0, 2, 0.005 * steps),
    }
    for (case, logits), (name, filters) in product(cases.items(), LISTS.items()):
        assert_exact(
            logits.astype(np.float32), Sampling(0.9, seed=7, **filters), 3, [0], (case, name), target
        )
        if case == "one bin":
            both = filters.get("top_k", vocab_size) < vocab_size and "top_p" in filters
            none = filters.get("top_k", 0) >= vocab_size and "top_p" not in filters
            expected = 0 if none else vocab_size if both else vocab_size - 1
            assert sampler(vocab_size, target=target).n_candidates() == expected


@pytest.mark.parametrize("vocab_size", [40000, 128256])
def test_even_logits(vocab_size: int) -> None:
    """As random weights make them: top-p's bin has hundreds, with logits of one sign or of both."""
    for shift in (0.0, 0.2, 5.0):
        logits = logits_of(vocab_size, 4, spread=0.9) + np.float32(shift)
        for filters in LISTS.values():
            assert_exact(logits, Sampling(0.8, seed=3, **filters), 3)
        assert_exact(logits, Sampling(0.8, top_p=0.9, seed=3), 3)
        assert 200 < sampler(vocab_size).n_candidates() < 2000
    assert_exact(logits, Sampling(0.8, seed=3), 3)
    assert sampler(vocab_size).n_candidates() == 0


def test_fewer_tokens_than_top_k() -> None:
    """Where it is cold most weights are 0: top-k keeps all others, top-p and min-p some of these."""
    logits = logits_of(3000, 6)
    for temperature in (0.001, 0.01, 0.05):
        for filters in ({}, {"top_p": 0.5}, {"top_p": 0.9999}, {"min_p": 0.1}):
            for top_k in (1, 5, 500, 2999):
                assert_exact(logits, Sampling(temperature, top_k=top_k, seed=2, **filters), 3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_software_draws_the_same(name: str) -> None:
    for vocab_size in (1, 15, 1000, 32003):
        history = [t % vocab_size for t in range(40)]
        assert_exact(logits_of(vocab_size), parameters(name), 3, history, name, SOFTWARE)
        sampler(vocab_size, target=SOFTWARE).check_guards()


def test_temperatures() -> None:
    logits = logits_of(700, 9)
    best = int(logits.argmax())
    for temperature in (1e-300, 1e-30, 1e-6, 1e-3):
        assert assert_exact(logits, Sampling(temperature, seed=1), 10) == [best] * 10
    for temperature in (0.01, 0.1, 1, 10, 1e3, 1e6, 1e30, 1e300):
        made = assert_exact(logits, Sampling(temperature, seed=1), 40)
    assert len(set(made)) > 30  # nearly uniform


def test_all_minus_infinity_but_one() -> None:
    for vocab_size in (1, 5, 2000, 70001):
        for at in {0, vocab_size // 2, vocab_size - 1}:
            for others in (-INF, np.float32(np.nan)):
                logits = np.full(vocab_size, others, np.float32)
                logits[at] = -3.5
                for name in PARAMETERS:
                    assert assert_exact(logits, parameters(name), 2, [0, at], name) == [at, at]


def test_nan_and_infinities_are_harmless() -> None:
    logits = logits_of(900, 3)
    logits[::3] = np.nan
    logits[1::9] = -INF
    for name in PARAMETERS:
        for token in assert_exact(logits, parameters(name), 10, [1, 3, 4, 5], name):
            assert np.isfinite(logits[token])
    logits[[17, 500]] = INF
    for name in PARAMETERS:
        assert set(assert_exact(logits, parameters(name), 10, [1, 3], name)) <= {17, 500}
    for value in (np.nan, -INF):
        for name in PARAMETERS:
            assert assert_exact(np.full(900, value, np.float32), parameters(name), 3, [1], name) == [0] * 3


def test_ties_are_kept() -> None:
    """top-k 1 and the least top-p leave every one of the equal logits, among them -0 and 0."""
    for vocab_size in (37, 5000):
        logits = np.full(vocab_size, -4.0, np.float32)
        equal = [0, 7, vocab_size // 2, vocab_size - 1]
        logits[equal] = [0.0, -0.0, 0.0, -0.0]
        for sampling in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(1.0, min_p=1.0)):
            assert set(assert_exact(logits, sampling, 60)) == set(equal)
    flat = np.zeros(1000, np.float32)
    for name in PARAMETERS:
        if "penalty" not in name:
            assert len(set(assert_exact(flat, parameters(name), 60, [1], name))) > 40


def test_extreme_logits() -> None:
    big = np.finfo(np.float32).max
    logits = np.array([-big, 0, 1e-45, big, big / 2, -1e-30, -big / 2], np.float32)
    for temperature in (1e-30, 1.0, 1e30, 1e38, 1e300):
        for name in PARAMETERS:
            assert_exact(logits, parameters(name, temperature=temperature), 10, [0, 3], name)


# ------------------------------------------------------------------ the right numbers of each


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "1" not in name and "penalty" not in name])
def test_chi_squared(name: str) -> None:
    """4,000 draws follow the probabilities of transformers' warpers in float64.

    chi² over c cells has mean c - 1 and deviation sqrt(2 (c - 1)); six deviations are passed by chance in
    less than one of 10^6. Cells with fewer than 8 draws expected are one cell.
    """
    logits = logits_of(120, 8, spread=1.0)
    sampling = parameters(name)
    made = Counter(sampler(120).run(logits, [0], sampling, 4000))
    p = probabilities(logits, [], sampling)
    assert all(p[token] > 0 for token in made)
    expected = 4000 * p
    common = [int(token) for token in np.flatnonzero(expected >= 8)]
    cells = [(made[token], expected[token]) for token in common]
    if (rest := expected.sum() - expected[common].sum()) > 1:
        cells.append((4000 - sum(made[token] for token in common), rest))
    chi2 = sum((n - e) ** 2 / e for n, e in cells)
    freedom = max(len(cells) - 1, 1)
    assert len(cells) > 1 or p.max() == 1
    assert chi2 < freedom + 6 * np.sqrt(2 * freedom), f"{chi2} over {freedom} degrees of freedom"


@pytest.mark.parametrize("name", PARAMETERS)
def test_survivors_are_those_of_transformers(name: str) -> None:
    """The reference's integer weights are float64's probabilities, of the same tokens, within 5e-6.

    A logit of 16 is off by 2^-20 in f32 after the penalty, and so is its exponential; the weight's step of
    2^-31 and the polynomial's 3.5e-9 are far below.
    """
    for seed in range(20):
        logits = logits_of(400, seed)
        history = [1, 5, 5, 9, seed, int(logits.argmax())]
        sampling = parameters(name)
        words = sampling.words()
        scores = penalised(logits, history, words)
        weights = surviving(scores, weights_of(scores, words), words).astype(np.float64)
        expected = probabilities(logits, history, sampling)
        assert abs(weights / weights.sum() - expected).max() < 5e-6
        assert set(np.flatnonzero(weights)) == set(np.flatnonzero(expected > 2.0**-31 * expected.max()))


def test_philox_vectors() -> None:
    """Random123's known answers for philox4x32-10."""
    ones = 0xFFFFFFFF
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


# ------------------------------------------------------------------ penalty, greedy, and when nothing runs


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0, 1e6])
def test_penalty_over_a_long_history(penalty: float) -> None:
    """Each token once, however often it occurs; those of other spans not at all; positive and negative."""
    rng = np.random.default_rng(1)
    logits = logits_of(5000, 2)
    history = [*rng.integers(0, 5000, 3000).tolist(), 4999, 0, 1023, 1024]
    for seed in range(8):
        assert_exact(logits, Sampling(1.0, repetition_penalty=penalty, seed=seed), 2, history)


def test_greedy_with_penalty() -> None:
    """The arg-max of the penalised logits; of equals the first."""
    logits = np.array([1.0, 8.0, 7.0, 7.0, -2.0, 7.5], np.float32)
    sampling = Sampling(repetition_penalty=2.0)
    assert sampler(6).run(logits, [0], sampling, 4) == [1, 5, 2, 3]
    assert sampler(6).run(logits, [1, 5], sampling, 2) == [2, 3]
    assert sampler(6).run(logits - 20, [1, 5], Sampling(repetition_penalty=1.5), 1) == [2]
    big = logits_of(30000)
    assert_exact(big, sampling, 10, [int(big.argmax())])


def test_greedy_is_the_argmax() -> None:
    for vocab_size in SIZES:
        logits = np.round(logits_of(vocab_size), 1)
        other = {"top_k": 3, "top_p": 0.5, "min_p": 0.3, "seed": 9}
        assert sampler(vocab_size).run(logits, [0], Sampling(**other), 2) == [int(logits.argmax())] * 2


def test_host_driven_draws_the_same() -> None:
    """Only the word `n_tokens` says which token comes next; the caller moves it."""
    logits = logits_of(3000)
    for name in PARAMETERS:
        sampling, history = parameters(name), [5, 6, 7]
        for _ in range(3):
            made = sampler(3000, "host").run(logits, history, sampling)
            assert made == [draw(logits, history, sampling)]
            history += made


def test_any_stop_token_ends() -> None:
    """As many as there may be; their last one counts too."""
    logits, sampling = logits_of(300), parameters("all")
    first = draw(logits, [1, 2, 3], sampling)
    for options in (sampling, Sampling()):
        token = first if options is sampling else int(logits.argmax())
        words = sampler(300).words([1, 2, 3], options, n_stop_tokens=MAX_STOP_TOKENS)
        for at in range(MAX_STOP_TOKENS):
            words[len(WORDS) - 1 :] = [299 if token != 299 else 298] * MAX_STOP_TOKENS
            words[len(WORDS) - 1 + at] = token
            assert sampler(300).run_words(logits, [1, 2, 3], words) == [-1]
        words[WORDS.index("n_stop_tokens")] = MAX_STOP_TOKENS - 1
        assert sampler(300).run_words(logits, [1, 2, 3], words) == [token]


def test_nothing_runs_after_a_stop_or_inside_a_prompt() -> None:
    logits, sampling = logits_of(300), parameters("all")
    assert sampler(300).run(logits, [1, 2, 3], sampling, 2, stop=1) == [-1, -1]
    assert sampler(300).run(logits, [1, 2, 3], sampling, 1, total_length=2, past_length=1) == [-1]
    first = draw(logits, [1, 2, 3], sampling)
    assert sampler(300).run(logits, [1, 2, 3], sampling, 4, n_stop_tokens=1, stop_tokens=first) == [-1] * 4
    assert sampler(300).run(logits, [1, 2, 3], sampling, 4, limit=4) == [first, -1, -1, -1]


def test_a_seed_is_64_bits_and_each_counts() -> None:
    logits = np.zeros(1000, np.float32)
    texts = {tuple(assert_exact(logits, Sampling(1.0, seed=1 << bit), 4)) for bit in range(64)}
    assert len(texts) == 64


def test_spans() -> None:
    for vocab_size in (*SIZES, 65536 * 4, 10**6):
        span, n_spans = spans(vocab_size)
        assert span % 256 == 0
        assert 1 <= n_spans <= 256
        assert span * (n_spans - 1) < vocab_size <= span * n_spans


@pytest.mark.parametrize("driven_by", ["gpu", "host"])
@pytest.mark.parametrize("vocab_size", [1, 271, 128256, 300000])
def test_shaders(vocab_size: int, driven_by: str) -> None:
    """Tint accepts them, they keep to WebGPU's limits, and sampling adds three dispatches."""
    program = program_of(vocab_size, driven_by)
    assert len(program.kernels) == 1 + 4
    for kernel in program.kernels:
        assert len(kernel.bindings) <= SPEC_LIMITS["max-storage-buffers-per-shader-stage"]
        for target in ALL_TARGETS:
            assert tint.check(render(kernel, target)) == [], kernel.name
