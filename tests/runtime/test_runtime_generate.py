"""Generation against the toy decoder's answer in plain Python: every token exact."""

from __future__ import annotations

import warnings

import pytest
from toy_artifact import build_decoder, greedy
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.generate import CapacityWarning
from webgpu_compile.runtime.replay import Recorder
from webgpu_compile.runtime.staging import Staging

VOCAB = 53


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_decoder(tmp_path_factory.mktemp("toy") / "out", capacity=400)


@pytest.fixture
def session(folder):
    with load(folder) as session:
        yield session


@pytest.mark.parametrize("tokens_per_submit", [1, 3, 8, 32, 500])
@pytest.mark.parametrize("n_prompt", [1, 2, 4, 5, 17, 37])
def test_tokens_do_not_depend_on_batches_or_chunks(session, n_prompt, tokens_per_submit):
    prompt = [(11 * i) % VOCAB for i in range(n_prompt)]
    made = list(session.generate(prompt, 45, tokens_per_submit=tokens_per_submit))
    assert made == greedy(prompt, 45, VOCAB)
    assert session.finish_reason == "length"
    assert session.tokens == prompt + made


@pytest.mark.parametrize("options", [{"driven_by": "host"}, {"indirect": True}, {"all_logits": False}])
def test_other_forms_give_the_same_tokens(tmp_path, options):
    with load(build_decoder(tmp_path / "out", **options)) as session:
        assert list(session.generate([3, 1, 4, 1, 5, 9], 20)) == greedy([3, 1, 4, 1, 5, 9], 20, VOCAB)
        assert list(session.generate([2], 5)) == greedy(session.tokens[:-5], 5, VOCAB)


@pytest.mark.parametrize("driven_by", ["gpu", "host"])
@pytest.mark.parametrize("at", [0, 1, 7, 8, 9, 20])
def test_stop_token_ends_and_is_not_kept(tmp_path, driven_by, at):
    prompt = [1, 2, 3]
    free = greedy(prompt, 30, VOCAB)
    stop = free[at]
    expected = greedy(prompt, 30, VOCAB, stop=[stop])
    with load(build_decoder(tmp_path / "out", driven_by=driven_by, stop_tokens=[stop])) as session:
        assert list(session.generate(prompt, 30)) == expected
        assert session.finish_reason == "stop"
        assert session.tokens == prompt + expected
        assert list(session.generate([], 3)) == []  # the same logits again: it stops again
        assert list(session.generate([9], 4, stop_tokens=[])) == greedy([*prompt, *expected, 9], 4, VOCAB)


def test_stop_tokens_given_replace_the_models(session):
    free = greedy([1, 2, 3], 30, VOCAB)
    stop = [free[12], free[5]]
    assert list(session.generate([1, 2, 3], 30, stop_tokens=stop)) == greedy([1, 2, 3], 30, VOCAB, stop=stop)


def test_leaving_early_keeps_what_was_given(session):
    prompt = [5, 6, 7]
    for n in (1, 3, 9):
        session.reset()
        made = []
        for token in session.generate(prompt, 40):
            made.append(token)
            if len(made) == n:
                break
        assert made == greedy(prompt, n, VOCAB)
        assert session.tokens == prompt + made
        assert session.finish_reason is None
        history = session.tokens
        assert list(session.generate([8, 8], 12)) == greedy([*history, 8, 8], 12, VOCAB)


def test_leaving_early_leaves_no_buffer_mapped(session, monkeypatch):
    """A staging buffer that is dropped with its mapping under way would be called back after it is freed."""
    open_requests = []
    request, read = Staging.request, Staging.read
    monkeypatch.setattr(Staging, "request", lambda s, n: (open_requests.append(s), request(s, n))[1])
    monkeypatch.setattr(Staging, "read", lambda s, i, n: (open_requests.remove(s), read(s, i, n))[1])
    for _ in session.generate([1], 40):
        assert open_requests
        break
    assert open_requests == []


def test_a_new_call_ends_a_generation_that_is_still_held(session):
    iterator = session.generate([1, 2], 40)
    first = [next(iterator), next(iterator)]
    made = list(session.generate([], 4))
    assert first + made == greedy([1, 2], 6, VOCAB)
    assert list(iterator) == []


def test_generation_never_started_changes_nothing(session):
    session.generate([1, 2], 4)
    assert session.tokens == []
    assert list(session.generate([3], 4)) == greedy([3], 4, VOCAB)


def test_continues_over_calls_and_resets(session):
    made = [t for _ in range(4) for t in session.generate([1] if not session.tokens else [], 5)]
    assert made == greedy([1], 20, VOCAB)
    session.reset()
    assert session.tokens == []
    assert list(session.generate([2], 5)) == greedy([2], 5, VOCAB)


def test_zero_new_tokens_append_the_prompt(session):
    assert list(session.generate([1, 2, 3], 0)) == []
    assert session.finish_reason == "length"
    assert list(session.generate([4], 6)) == greedy([1, 2, 3, 4], 6, VOCAB)


@pytest.mark.parametrize("driven_by", ["gpu", "host"])
def test_capacity_ends_generation_with_one_warning(tmp_path, driven_by):
    folder = build_decoder(tmp_path / "out", capacity=20, driven_by=driven_by)
    with load(folder) as session:
        with pytest.warns(CapacityWarning, match="20 positions"):
            made = list(session.generate([1, 2, 3]))
        assert made == greedy(
            [1, 2, 3], 18, VOCAB
        )  # one more than fits: it is sampled from the last position
        assert session.finish_reason == "capacity"
        with pytest.raises(RuntimeFailure, match=r"is full: 21 tokens of history"):
            session.generate([], 1)
        session.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(session.generate(range(20))) == greedy(range(20), 1, VOCAB)
            session.reset()
            assert len(list(session.generate([1, 2, 3], 18))) == 18
        assert session.finish_reason == "length"  # asked for exactly what fits


def test_no_host_work_per_token(session, monkeypatch):
    """Uploads happen once per call; submissions and reads once per batch; at most two are in flight."""
    events = []

    def spy(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            events.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    spy(type(session._resources.device.queue), "write_buffer")
    spy(Recorder, "submit")
    spy(Staging, "read")
    assert len(list(session.generate([1, 2], 161, tokens_per_submit=16))) == 161
    assert events.count("write_buffer") == 2
    assert events.count("submit") == events.count("read") == 11  # the prompt's token, then ten batches
    assert events[:7] == ["write_buffer", "write_buffer", "submit", "submit", "read", "submit", "read"]
    in_flight = [events[:n].count("submit") - events[:n].count("read") for n in range(len(events))]
    assert max(in_flight) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "the prompt: is empty"),
        (([53],), "token 53 at position 0, outside the vocabulary of 53"),
        (([0, -1],), "token -1 at position 1, outside the vocabulary"),
        (([1.5],), "is float64, not integers"),
        (("text",), "is text, not token ids"),
        (([[1, 2], [3, 4]],), "has shape"),
        (([2**70],), "outside the vocabulary"),
        ((list(range(50)) * 9,), "holds 400 positions, and the prompt has 450 tokens"),
        (([1], -1), "max_new_tokens: is -1"),
        (([1], 4, [1, 2, 3, 4, 5]), "stop_tokens: has 5 tokens; give 4 at most"),
        (([1], 4, [99]), "stop_tokens: has the token 99"),
        (([1], 4, None, 0), "tokens_per_submit: is 0"),
        (([1], 2.5), "max_new_tokens: is 2.5; give a whole number"),
    ],
)
def test_bad_arguments_fail_at_once(session, arguments, message):
    with pytest.raises(RuntimeFailure, match=message):
        session.generate(*arguments)
    assert session.tokens == []
