"""Graphs that the real exporter wrote, against ONNX Runtime's recorded answers (shared/models/ref).

They lie beside the project where it is developed and in CI; elsewhere this file has nothing to run, and
test_decoders.py covers the same families with models of our own recipe.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import webgpu_compile
from reference import greedy_mismatch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
FAMILIES = ("llama", "llama-untied", "phi3", "phi4", "mistral", "qwen25")
MODELS = [
    path.relative_to(SHARED).as_posix()
    for family in FAMILIES
    for path in sorted((SHARED / f"tiny-{family}").glob("*"))
]

FLOAT_TOLERANCE = 0.02
"""Largest logit difference for float activations: f16 rounding of ONNX Runtime's own intermediate values
moves logits of standard deviation 0.5-1 by about 0.005 here; four times that is allowed."""

INT8_TOLERANCE = 0.1
"""With int8 activations ONNX Runtime's own two answers differ by 0.04-0.07 here."""


def reference(name: str, suffix: str = "") -> dict[str, np.ndarray]:
    with np.load(SHARED / "ref" / f"{name.replace('/', '__')}{suffix}.npz") as data:
        return dict(data)


def check(name: str, out: Path, expected: dict[str, np.ndarray], tolerance: float) -> None:
    prompt = expected["prompt"][0]
    n_prompt, n_steps = len(prompt), len(expected["logits"]) - len(prompt)
    with webgpu_compile.load(out) as session:
        rows = [session.run({"input_ids": prompt[None]})["logits"][0]]
        for token in expected["tokens"][:n_steps]:
            rows.append(session.run({"input_ids": np.array([[token]])})["logits"][0])
        logits = np.concatenate(rows).astype(np.float32)
        assert logits.shape == expected["logits"].shape
        error = np.abs(logits - expected["logits"]).max()
        assert error <= tolerance, f"{name}: logits differ by {error:.4f}"
        session.reset()
        tokens = list(session.generate(prompt.tolist(), max_new_tokens=n_steps, stop_tokens=[]))
    steps = expected["logits"][n_prompt - 1 :]
    assert greedy_mismatch(expected["tokens"][:n_steps].tolist(), tokens, steps, tolerance) is None


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_tokens_with_float_activations(name: str, tmp_path: Path) -> None:
    webgpu_compile.compile(
        SHARED / name, tmp_path / "out", activations="float", max_length=64, prefill_chunks=(16,)
    )
    has_float_reference = "fp16" not in name
    check(name, tmp_path / "out", reference(name, "__float" if has_float_reference else ""), FLOAT_TOLERANCE)


@pytest.mark.parametrize("name", [name for name in MODELS if "fp16" not in name])
def test_logits_and_tokens_with_int8_activations(name: str, tmp_path: Path) -> None:
    webgpu_compile.compile(SHARED / name, tmp_path / "out", max_length=64, prefill_chunks=(16,))
    for suffix in ("", "__float"):
        check(name, tmp_path / "out", reference(name, suffix), INT8_TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_no_memcpy_is_left(name: str, tmp_path: Path) -> None:
    result = webgpu_compile.compile(SHARED / name, tmp_path / "out", check=True)
    counts = result.device.counts
    assert counts.memcpy_before >= (0 if name.endswith("-graph") else 1)
    assert counts.memcpy_after == 0
    assert counts.host_nodes_after == 0
