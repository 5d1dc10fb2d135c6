"""Perplexity of the demo model, on the GPU and in ONNX Runtime: the figure that guards the kernels."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import webgpu_compile
from conftest import Artifacts
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.perplexity import Score, losses, measure_perplexity
from webgpu_compile.runtime.text import load_tokenizer

DEMO = Path(__file__).parent.parent / "models" / "demo"
sys.path.append(str(DEMO))
evaluate: Any = importlib.import_module("evaluate")

N_TOKENS, WINDOW = 400, 160
"""Two windows and a part of a third."""


@pytest.fixture(scope="module")
def text() -> str:
    return (DEMO / "held-out.txt").read_text(encoding="utf-8")


def measured(folder: Path, text: str, **options: Any) -> Score:
    tokenizer = load_tokenizer(open_artifact(folder))
    with webgpu_compile.load(folder) as session:
        return measure_perplexity(session, tokenizer, text, n_tokens=N_TOKENS, window=WINDOW, **options)


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model at accuracy level 0: ONNX Runtime too keeps activations float."""
    folder: Path = tmp_path_factory.mktemp("float")
    for file in (DEMO / "int4").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, folder / "model.onnx")
    return folder


def test_float_activations_are_within_a_fifth_of_a_percent(
    artifacts: Artifacts, text: str, float_model: Path
) -> None:
    """Perplexity is e^loss, so 0.2 % of it is 0.002 in the loss. Rounding to f16 between ONNX Runtime's
    operators moves single losses by about 0.01, and their mean by much less."""
    expected = evaluate.evaluate(float_model, text, n_tokens=N_TOKENS, window=WINDOW)
    seen: list[tuple[int, int]] = []
    folder = artifacts.compile(DEMO / "int4" / "model.onnx", activations="float")
    score = measured(folder, text, progress=lambda done, total, loss: seen.append((done, total)))
    assert score.perplexity == pytest.approx(expected.perplexity, rel=0.002)
    assert (score.n_tokens, score.n_bytes) == (expected.n_tokens, expected.n_bytes)
    assert score.n_tokens == N_TOKENS - 3
    assert score.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=0.002)
    assert seen == [(160, 400), (320, 400), (400, 400)]


def test_int8_activations_are_within_half_a_percent(artifacts: Artifacts, text: str) -> None:
    expected = evaluate.evaluate(DEMO / "int4", text, n_tokens=N_TOKENS, window=WINDOW)
    score = measured(artifacts.compile(DEMO / "int4" / "model.onnx"), text)
    assert score.perplexity == pytest.approx(expected.perplexity, rel=0.005)


def test_losses_in_float64() -> None:
    """Large logits too: without the maximum taken off, e^2000 is no number."""
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [2000.0, 1999.0, -2000.0, 0.0]], np.float32)
    expected = [np.log(4), np.log(1 + np.e)]  # ln(e^0 + e^1) for the second best
    np.testing.assert_allclose(losses(logits, np.array([2, 1])), expected, rtol=1e-12)
    uniform = np.zeros((1, 100_000), np.float16)
    np.testing.assert_allclose(losses(uniform, np.array([7])), [np.log(100_000)], rtol=1e-12)
