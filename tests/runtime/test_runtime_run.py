"""`run`: names, dtypes and shapes as in ONNX Runtime; values exact."""

from __future__ import annotations

import numpy as np
import pytest
from toy_artifact import HEADS, build_decoder, build_graph, greedy, next_token
from webgpu_compile.runtime import RuntimeFailure, load
from webgpu_compile.runtime.replay import Recorder

VOCAB = 53


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_decoder(tmp_path_factory.mktemp("toy") / "out")


@pytest.fixture
def session(folder):
    with load(folder) as session:
        yield session


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    with load(build_graph(tmp_path_factory.mktemp("graph") / "out")) as session:
        yield session


def test_graph(graph):
    x = np.linspace(-3, 3, 100).astype(np.float16)
    expected = np.arange(100, dtype=np.float32) * x.astype(np.float32) + 0.5
    found = graph.run({"x": x})
    assert {name: array.dtype for name, array in found.items()} == {"y": np.float16, "z": np.float32}
    # One fused multiply-add may round once where NumPy rounds twice.
    np.testing.assert_allclose(found["z"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-3)
    assert list(graph.run({"x": x.tolist()}, ["z"])) == ["z"]
    assert graph.capacity is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x': is missing"),
        ({"x": np.zeros(99, np.float16)}, r"has shape \[99\], not \[100\]"),
        ({"x": np.zeros((1, 100), np.float16)}, r"has shape \[1, 100\]"),
        ({"x": np.zeros(100)}, "is float64, not float16"),
        ({"w": np.zeros(100, np.float16)}, "input 'w': is not the model's; its inputs are x"),
    ],
)
def test_graph_bad_inputs(graph, inputs, message):
    with pytest.raises(RuntimeFailure, match=message):
        graph.run(inputs)


def test_graph_does_not_generate(graph):
    with pytest.raises(RuntimeFailure, match="needs a language model"):
        graph.generate([1])


@pytest.mark.parametrize("split", [1, 3, 4, 16, 18])
def test_logits_of_every_position(session, split):
    ids = np.array([[(5 * i) % VOCAB for i in range(19)]])
    first = session.run({"input_ids": ids[:, :split]})["logits"]
    second = session.run({"input_ids": ids[:, split:].astype(np.int32)})["logits"]
    logits = np.concatenate([first, second], axis=1)
    assert logits.shape == (1, 19, VOCAB)
    assert logits.dtype == np.float16
    assert logits.argmax(-1)[0].tolist() == [next_token(ids[0, : n + 1].tolist(), VOCAB) for n in range(19)]
    assert (logits.max(-1) == 0.5).all()


@pytest.mark.parametrize("n", [1, 2, 4, 21])
def test_logits_of_the_last_position_only(tmp_path, n):
    with load(build_decoder(tmp_path / "out", all_logits=False)) as session:
        ids = [(5 * i) % VOCAB for i in range(n)]
        logits = session.run({"input_ids": np.array([ids])})["logits"]
        assert logits.shape == (1, 1, VOCAB)
        assert logits.argmax() == next_token(ids, VOCAB)


def test_host_driven_gives_the_same_logits(tmp_path, session):
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])
    with load(build_decoder(tmp_path / "out", driven_by="host")) as host:
        for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:]):
            ours, theirs = session.run({"input_ids": part}), host.run({"input_ids": part})
            assert np.array_equal(ours["logits"], theirs["logits"])


def test_one_token_costs_one_decode(session, monkeypatch):
    session.run({"input_ids": [[1, 2, 3]]})
    replayed = []
    encode = Recorder._encode
    monkeypatch.setattr(
        Recorder, "_encode", lambda s, work: (replayed.append(list(work)), encode(s, work))[1]
    )
    session.run({"input_ids": [[4]]})
    assert [work[0] for work in replayed] == [session._resources.programs["decode"]]


def test_mixes_with_generate(session):
    """A token that was sampled and not fed yet belongs to the history and is fed first."""
    made = list(session.generate([1, 2], 5))
    logits = session.run({"input_ids": [[7, 8, 9]]})["logits"]
    history = [1, 2, *made, 7, 8, 9]
    assert logits.argmax(-1)[0].tolist() == [next_token(history[:n], VOCAB) for n in (8, 9, 10)]
    assert session.tokens == history
    assert list(session.generate([], 4)) == greedy(history, 4, VOCAB)


def test_present_is_cut_to_the_valid_length(session):
    ids = [2, 7, 1, 8, 2]
    found = session.run({"input_ids": np.array(ids)}, ["present.0.key"])
    assert list(found) == ["present.0.key"]
    expected = np.array([7 * token + p for p, token in enumerate(ids)], np.float16)
    key = found["present.0.key"]
    assert (key.shape, key.dtype) == ((1, HEADS, 5, 2), np.float16)
    for head in range(HEADS):
        for i in range(2):
            assert np.array_equal(key[0, head, :, i], expected + np.float16(1000 * (2 * head + i)))


def test_mask_may_be_given_if_it_says_nothing(session):
    session.run({"input_ids": [[1, 2]], "attention_mask": np.ones((1, 2), np.int64)})
    session.run({"input_ids": [[3]], "attention_mask": np.ones((1, 3), np.int64)})
    for mask in (np.ones((1, 1)), np.array([[0, 1, 1, 1]]), np.ones((2, 4))):
        with pytest.raises(RuntimeFailure, match=r"all ones of shape \[1, 4\]"):
            session.run({"input_ids": [[4]], "attention_mask": mask})
    assert session.tokens == [1, 2, 3]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'input_ids': is missing"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, "input 'input_ids': is empty"),
        ({"input_ids": np.zeros((2, 3), np.int64)}, r"has shape \[2, 3\]"),
        ({"input_ids": np.zeros((1, 3))}, "is float64, not integers"),
        ({"input_ids": np.ones((1, 3), bool)}, "is bool, not integers"),
        ({"input_ids": [[1, VOCAB]]}, "outside the vocabulary of 53"),
        ({"input_ids": np.zeros((1, 41), np.int64)}, "holds 40 positions, and the prompt has 41"),
        ({"input_ids": [[1]], "past_key_values.0.key": np.zeros(1)}, "the session keeps the KV cache"),
        ({"input_ids": [[1]], "ids": [1]}, "input 'ids': is not the model's"),
    ],
)
def test_bad_inputs(session, inputs, message):
    with pytest.raises(RuntimeFailure, match=message):
        session.run(inputs)
    assert session.tokens == []


def test_bad_output(session):
    with pytest.raises(RuntimeFailure, match="output 'logit': is not the model's; choose from logits"):
        session.run({"input_ids": [[1]]}, ["logit"])


def test_cache_is_full_after_capacity(session):
    session.run({"input_ids": np.zeros((1, 40), np.int64)})
    with pytest.raises(RuntimeFailure, match="is full: 40 tokens of history and 1 new"):
        session.run({"input_ids": [[1]]})


def test_closed_session(folder):
    session = load(folder)
    session.close()
    session.close()
    with pytest.raises(RuntimeFailure, match="the session: is closed"):
        session.run({"input_ids": [[1]]})
