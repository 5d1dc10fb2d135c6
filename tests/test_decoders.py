"""Logits of decoders of our own recipe against ONNX Runtime on the CPU, on prompts and decoded tokens.

Reference for float activations: the same weights at accuracy_level 0. With int8 activations ONNX Runtime's
answers at both levels are references.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import FAMILIES, FP16, GRAPH, MASKS, MOBIUS, PLAIN, SHAPES, long_rope, of, shape, spellings
from reference import OrtDecoder
from webgpu_compile.compiler.target import TARGETS
from webgpu_compile.models import DecoderConfig, Precision

TOLERANCE = {"float": 0.02, "int8": 0.1}
"""Largest logit difference. float: f16 rounding inside ONNX Runtime moves logits of deviation 0.7 by about
0.005. int8: ONNX Runtime's own two answers differ by 0.06."""

CHUNK = 16
SPELLINGS = spellings()
Logits = np.ndarray


def ids_of(config: DecoderConfig, n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, config.vocab_size, n).tolist()


def references(artifacts: Artifacts, config: DecoderConfig, activations: str) -> list[OrtDecoder]:
    config = replace(config, prune_lm_head=False)  # the weights are the same
    levels = (0,) if activations == "float" else (4, 0)
    if config.precision is not Precision.INT4:
        levels = (config.accuracy_level,)
    return [OrtDecoder(artifacts.model(replace(config, accuracy_level=level))) for level in levels]


def fed(decoder: Any, ids: list[int], cuts: list[int]) -> list[Logits]:
    """Logits of each call, when `ids` are given in pieces that end at `cuts` (and at the end)."""
    return [decoder(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def ours(session: webgpu_compile.Session, ids: list[int], cuts: list[int]) -> list[Logits]:
    session.reset()
    return fed(lambda part: session.run({"input_ids": np.array([part])})["logits"][0], ids, cuts)


def error(actual: list[Logits], expected: list[Logits]) -> float:
    """Largest difference. Where `actual` has only the last position of a call, that is compared."""
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        assert np.isfinite(a).all()
        assert len(a) in (1, len(b))
        worst = max(worst, float(np.abs(a.astype(np.float32) - b[-len(a) :]).max()))
    return worst


def check(
    artifacts: Artifacts,
    config: DecoderConfig,
    activations: str,
    *,
    n_prompt: int = 21,
    n_steps: int = 4,
    reference: DecoderConfig | None = None,
    **options: Any,
) -> None:
    """A prompt over two chunks, then single tokens; `reference` where ONNX Runtime cannot run `config`."""
    options = {"max_length": 64, "prefill_chunks": (CHUNK,)} | options
    out = artifacts.compile(config, activations=activations, **options)
    ids = ids_of(config, n_prompt + n_steps)
    cuts = list(range(n_prompt, n_prompt + n_steps))
    with webgpu_compile.load(out) as session:
        actual = ours(session, ids, cuts)
    rows = 1 if config.prune_lm_head else n_prompt
    assert [part.shape for part in actual] == [(rows, config.vocab_size)] + [(1, config.vocab_size)] * n_steps
    for decoder in references(artifacts, reference or config, activations):
        assert error(actual, fed(decoder.run, ids, cuts)) <= TOLERANCE[activations]


@pytest.mark.parametrize("case", SPELLINGS)
def test_families_and_spellings(artifacts: Artifacts, case: str) -> None:
    config, activations = SPELLINGS[case]
    check(artifacts, config, activations)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_and_spellings(artifacts: Artifacts, family: str, mask: Any) -> None:
    for changes in ({}, {"io_dtype": "f32"}, {"symmetric": False, "block_size": 64}, FP16):
        config = of(family, mask=mask, **changes)
        check(artifacts, config, "float")
        if config.precision is Precision.INT4:
            check(artifacts, config, "int8")


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(artifacts: Artifacts, case: str) -> None:
    check(artifacts, SHAPES[case], "float", n_prompt=19, n_steps=2)


@pytest.mark.parametrize("case", [name for name, c in SHAPES.items() if c.precision is Precision.INT4])
def test_shapes_with_int8_activations(artifacts: Artifacts, case: str) -> None:
    check(artifacts, SHAPES[case], "int8", n_prompt=19, n_steps=2)


@pytest.mark.parametrize("level", [0, 1, 4])
def test_activations_follow_accuracy_level(artifacts: Artifacts, level: int) -> None:
    """The default takes int8 exactly where the model allows it (accuracy_level 4)."""
    config = shape(accuracy_level=level)
    ids = ids_of(config, 20)
    outs = {
        activations: artifacts.compile(
            config, activations=activations, max_length=32, prefill_chunks=(CHUNK,)
        )
        for activations in ("auto", "float", "int8")
    }
    logits = {}
    for activations, out in outs.items():
        with webgpu_compile.load(out) as session:
            logits[activations] = ours(session, ids, [])[0]
    assert not np.array_equal(logits["float"], logits["int8"])
    assert np.array_equal(logits["auto"], logits["int8" if level == 4 else "float"])


# ------------------------------------------------------------------ where a prompt ends


def test_prompts_of_any_length(artifacts: Artifacts) -> None:
    """Every number of rows around the chunk sizes, one row, and more than all chunks together."""
    config = of("tiny-llama-untied")
    out = artifacts.compile(config, activations="float", max_length=160, prefill_chunks=(16, 32))
    ids = ids_of(config, 120)
    (reference,) = references(artifacts, config, "float")
    expected = reference.run(ids)
    with webgpu_compile.load(out) as session:
        for n in (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 120):
            actual = ours(session, ids[:n], [])
            assert error(actual, [expected[:n]]) <= TOLERANCE["float"], f"{n} rows"
        for cuts in ([1], [15], [16, 17], [1, 2, 3], [50, 51, 90]):
            actual = ours(session, ids, cuts)
            assert error(actual, np.split(expected, cuts)) <= TOLERANCE["float"], f"cut at {cuts}"


@pytest.mark.parametrize("window", [1, 15, 16, 17, 33])
def test_sliding_window_is_crossed(artifacts: Artifacts, window: int) -> None:
    """The window ends inside a chunk, at its end and behind it; tokens decoded move it on."""
    changes = {} if window % 2 else FP16
    config = shape(n_heads=4, n_kv_heads=2, head_size=64, sliding_window=window, **changes)
    unlimited = replace(config, sliding_window=None)
    ids = ids_of(config, 50)
    cuts = list(range(40, 50))
    (with_window,) = references(artifacts, config, "float")
    (without,) = references(artifacts, unlimited, "float")
    expected = fed(with_window.run, ids, cuts)
    assert error(expected, fed(without.run, ids, cuts)) > 0.2  # the window shows
    check(artifacts, config, "float", n_prompt=40, n_steps=10)


# ------------------------------------------------------------------ LongRoPE


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([60, 61, 62], id="prompt-beyond"),
        pytest.param([38, 39, 40, 41, 42, 43], id="decode-crosses"),
        pytest.param([20, 40, 41], id="prompt-ends-there"),
        pytest.param([30, 52], id="second-prompt-crosses"),
    ],
)
def test_long_rope(artifacts: Artifacts, mask: Any, cuts: list[int]) -> None:
    """Which table is read follows the total length of each call, as the If of the plain export says."""
    config = long_rope(mask=mask)
    out = artifacts.compile(config, activations="float", max_length=80, prefill_chunks=(CHUNK,))
    ids = ids_of(config, cuts[-1] + 1)
    # ONNX Runtime's CPU provider ignores the offset of a concatenated table: the If form is the reference.
    (reference,) = references(artifacts, replace(config, mask=PLAIN), "float")
    expected = fed(reference.run, ids, cuts)
    with webgpu_compile.load(out) as session:
        assert error(ours(session, ids, cuts), expected) <= TOLERANCE["float"]


def test_long_rope_factors_show(artifacts: Artifacts) -> None:
    """The tests above tell the tables apart: with the short one only, logits differ by far more."""
    config = long_rope()
    (reference,) = references(artifacts, config, "float")
    short_rope = replace(config.rope, long_factors=config.rope.short_factors)  # type: ignore[type-var]
    (short,) = references(artifacts, replace(config, rope=short_rope), "float")
    ids = ids_of(config, 61)
    assert error([reference.run(ids)], [short.run(ids)]) > 0.2


@pytest.mark.parametrize("mask", [PLAIN, GRAPH])
@pytest.mark.parametrize("capacity", [39, 40, 41])
def test_long_rope_at_its_threshold(artifacts: Artifacts, mask: Any, capacity: int) -> None:
    """A capacity that never needs the long table, and one that needs a single row of it."""
    config = long_rope(mask=mask, n_layers=1, **FP16)
    out = artifacts.compile(config, max_length=capacity, prefill_chunks=(CHUNK,))
    ids = ids_of(config, capacity)
    cuts = [capacity - 1]
    (reference,) = references(artifacts, replace(config, mask=PLAIN), "float")
    expected = fed(reference.run, ids, cuts)
    with webgpu_compile.load(out) as session:
        assert error(ours(session, ids, cuts), expected) <= TOLERANCE["float"]


# ------------------------------------------------------------------ variants


@pytest.mark.parametrize("case", ["llama-int4", "llama-int8", "mistral-fp16", "asymmetric-int8"])
def test_variants_agree(artifacts: Artifacts, case: str) -> None:
    """Sums in another order, rounded to f16 at the end: 0.005 for logits under 4 in size."""
    config, activations = {
        "llama-int4": (of("tiny-llama-untied"), "float"),
        "llama-int8": (of("tiny-llama"), "int8"),
        "mistral-fp16": (of("tiny-mistral", **FP16), "float"),
        "asymmetric-int8": (SHAPES["odd-sizes-asymmetric-block16"], "int8"),
    }[case]
    options: dict[str, Any] = {"max_length": 64, "prefill_chunks": (CHUNK,), "variants": tuple(TARGETS)}
    out = artifacts.compile(config, activations=activations, **options)
    ids = ids_of(config, 30)
    cuts = [21, 22, 23]
    logits = {}
    for variant in TARGETS:
        with webgpu_compile.load(out, variant=variant) as session:
            assert session.variant == variant
            logits[variant] = ours(session, ids, cuts)
    for decoder in references(artifacts, config, activations):
        expected = fed(decoder.run, ids, cuts)
        for variant in TARGETS:
            assert error(logits[variant], expected) <= TOLERANCE[activations], variant
    # int8: a sum in another order may round an activation to its other neighbour
    tolerance = 0.005 if activations == "float" else 0.03
    for variant in ("subgroups", "f16-subgroups"):
        assert error(logits[variant], logits["portable"]) <= tolerance, variant


# ------------------------------------------------------------------ the way in


LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(of("tiny-llama"), id="llama-int4-tied"),
        pytest.param(of("tiny-qwen25", mask=GRAPH), id="qwen-int4-graph"),
        pytest.param(of("tiny-mistral", **FP16), id="mistral-fp16"),
        pytest.param(long_rope(), id="phi4-int4-if"),
        pytest.param(shape(mask=MOBIUS, io_dtype="f32"), id="f32-mobius"),
        pytest.param(shape(prune_lm_head=True, qkv_bias=True, **FP16), id="pruned-fp16"),
    ],
)
def test_models_saved_by_onnx_runtime(
    artifacts: Artifacts, tmp_path: Path, config: DecoderConfig, level: str
) -> None:
    """After ONNX Runtime's own optimisation: fused ops, casts around fp16, constants folded."""
    source = artifacts.model(replace(config, accuracy_level=0))
    saved = tmp_path / "saved" / "model.onnx"
    shutil.copytree(source.parent, saved.parent, ignore=shutil.ignore_patterns("model.onnx"))
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(saved)
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    assert saved.read_bytes() != source.read_bytes()
    webgpu_compile.compile(saved, tmp_path / "out", max_length=64, prefill_chunks=(CHUNK,))
    ids = ids_of(config, 45)
    cuts = [21, 22, 44]
    (reference,) = references(artifacts, config, "float")
    expected = fed(reference.run, ids, cuts)
    with webgpu_compile.load(tmp_path / "out") as session:
        assert error(ours(session, ids, cuts), expected) <= TOLERANCE["float"]
