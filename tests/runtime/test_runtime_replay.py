"""Encoding by several threads: the same submission, in the same order, with the same errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_artifact import build_decoder, greedy
from webgpu_compile.runtime import RuntimeFailure, load, replay
from webgpu_compile.runtime.replay import MIN_PIECE, CopyCall, Prepared, pieces

VOCAB = 53
COPY = CopyCall(None, 0, None, 0, 4)
WORK = st.lists(st.integers(0, 300).map(lambda n: Prepared((), (), n)) | st.just(COPY), min_size=1)


@given(WORK, st.integers(1, 5))
def test_pieces_keep_order_and_are_worth_a_thread(work, n_threads):
    cut = pieces(work, n_threads)
    assert [item for piece in cut for item in piece] == work
    assert 1 <= len(cut) <= n_threads
    assert all(cut)
    total = sum(item.n_dispatches for item in work if item is not COPY)
    assert len(cut) == 1 or total >= MIN_PIECE * len(cut)


def test_pieces_are_even():
    programs = [Prepared((), (), 100)] * 8
    assert [len(piece) for piece in pieces([*programs, COPY, COPY], 4)] == [2, 2, 2, 4]
    assert [len(piece) for piece in pieces(programs, 3)] == [3, 3, 2]


@pytest.fixture
def threaded(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MIN_PIECE", 1)
    with load(build_decoder(tmp_path / "out", capacity=400)) as session:
        session._resources.recorder._n_threads = 3
        yield session


def test_tokens_do_not_depend_on_threads(threaded):
    prompt = [(11 * i) % VOCAB for i in range(37)]
    assert list(threaded.generate(prompt, 300, tokens_per_submit=16)) == greedy(prompt, 300, VOCAB)
    pool = threaded._resources.recorder._pool
    assert pool is not None
    threaded.close()
    assert all(not thread.is_alive() for thread in pool._threads)


def test_an_error_on_a_thread_is_raised_and_nothing_is_submitted(threaded):
    recorder, programs = threaded._resources.recorder, threaded._resources.programs
    assert list(threaded.generate([3], 2)) == greedy([3], 2, VOCAB)
    state = threaded.manifest.sequence
    buffer = threaded._resources.buffers[state.tokens]
    beyond = CopyCall(buffer, 0, buffer, 1 << 30, 4)
    for at in range(3):
        work = [programs["decode"]] * 3
        work.insert(at, beyond)
        with pytest.raises(RuntimeFailure, match="the GPU: reported an error"):
            recorder.submit(work)
    assert list(threaded.generate([], 4)) == greedy([3, *greedy([3], 2, VOCAB)], 4, VOCAB)
