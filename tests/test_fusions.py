"""Fusions are switches: without one, or without all, a model takes more dispatches and answers the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import FP16, long_rope, of
from webgpu_compile.compiler.passes.front import FUSIONS
from webgpu_compile.models import DecoderConfig

TOLERANCE = {"int4": 0.05, "fp16": 0.002}
"""Largest logit difference. fp16: sums in another order, by 1e-6; then a logit under 4 may round to the next
f16, which is 0.002 away. int4: an int8 activation may round to its other neighbour, as between variants, and
what a product writes itself is in blocks of 16 instead of 32 (0.032 seen, of logits up to 4)."""

SMALL = {"n_layers": 1, "vocab_size": 523}
F32 = {"io_dtype": "f32"}
MODELS: dict[str, DecoderConfig] = {
    "llama-int4": of("tiny-llama-untied", **SMALL, **F32),
    "llama-fp16": of("tiny-llama-untied", **SMALL, **FP16),
    "phi-int4": long_rope(**SMALL, **F32),  # queries, keys and values in one matrix, a partial rotation
    "phi-fp16": long_rope(**SMALL, **FP16),
    "qwen-int4": of("tiny-qwen25", **SMALL, **F32),  # a bias
    "qwen-fp16": of("tiny-qwen25", **SMALL, **FP16),
    "gelu-int4": of("tiny-llama-untied", **SMALL, **F32, activation="gelu_tanh"),
    "gelu-fp16": of("tiny-llama-untied", **SMALL, **FP16, activation="gelu"),
}
NAMES = [rule.__name__ for rule in FUSIONS]


def more_dispatches(name: str, config: DecoderConfig) -> int:
    """How many more a token of one layer takes without a fusion."""
    int8 = config.precision.value == "int4"
    gate = 3 if config.activation == "silu" else 2  # Sigmoid and two products, or Gelu and one
    return {
        "fuse_matmul_bias": 2 if config.qkv_bias else 0,  # the bias, and what appends to the cache behind it
        "fuse_gated_mlp": 1 + gate + int8,
        "fuse_qkv_attention": 1,
        "fuse_residual_norm": 2 * int8,
        "fuse_quantize": 3 * int8,  # the first norm, attention, the gated product
        "fuse_argmax": 1,
    }[name]


def compiled(artifacts: Artifacts, config: DecoderConfig, *disabled: str) -> Any:
    # More than one split of attention, whose merge can write int8.
    options: dict[str, Any] = {"max_length": 80, "prefill_chunks": (16,), "variants": ("portable",)}
    return artifacts.result(config, **options, disable_passes=disabled)


def n_dispatches(result: Any) -> int:
    return len(result.programs["portable"][0].kernels)


def answers(result: Any) -> tuple[np.ndarray, list[int]]:
    """Logits of a prompt over two chunks and of three tokens, and greedy tokens."""
    vocab_size = result.programs["portable"][0].tensors["logits"].shape[-1]
    ids = np.random.default_rng(1).integers(0, vocab_size, (1, 24))
    with webgpu_compile.load(result.out) as session:
        parts = [
            session.run({"input_ids": part})["logits"][0] for part in np.split(ids, [21, 22, 23], axis=1)
        ]
        session.reset()
        tokens = list(session.generate(ids[0, :21], max_new_tokens=4, stop_tokens=()))
    return np.concatenate(parts).astype(np.float32), tokens


SLOW = ("phi-fp16", "gelu-fp16")


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_unfused_answers_are_the_same(artifacts: Artifacts, model: str) -> None:
    config = MODELS[model]
    whole = compiled(artifacts, config)
    expected, tokens = answers(whole)
    assert float(np.abs(expected).max()) < 4
    assert len(tokens) == 4
    for disabled in (*((name,) for name in NAMES), tuple(NAMES)):
        less = compiled(artifacts, config, *disabled)
        logits, found = answers(less)
        assert float(np.abs(logits - expected).max()) <= TOLERANCE[model[-4:]], disabled
        best = np.sort(expected[20])
        if best[-1] - best[-2] > 2 * TOLERANCE[model[-4:]]:
            assert found[0] == tokens[0], disabled
        if len(disabled) == 1:
            more = n_dispatches(less) - n_dispatches(whole)
            assert more == more_dispatches(disabled[0], config), disabled
        else:
            most = max(more_dispatches(name, config) for name in NAMES)
            assert n_dispatches(less) > n_dispatches(whole) + most


@pytest.mark.parametrize("name", NAMES)
def test_dumps_show_a_fusion_unless_it_is_disabled(tmp_path: Any, artifacts: Artifacts, name: str) -> None:
    model = artifacts.model(MODELS["qwen-int4"])
    for disabled in ((), (name,)):
        dump = tmp_path / "-".join(("dump", *disabled))
        options: dict[str, Any] = {"disable_passes": disabled, "stop_after": "graph", "dump": dump}
        result = webgpu_compile.compile(model, prefill_chunks=(16,), **options)
        shown = [path.name for path in dump.iterdir() if path.stem.endswith(name)]
        assert bool(shown) == (not disabled)
        changes, _ = result.device.counts.by_pass().get(name, (0, 0.0))
        assert bool(changes) == (not disabled)


def test_dispatches_per_layer(artifacts: Artifacts) -> None:
    """Six per layer with int8 activations, eight in fp16; the rest does not grow with the layers."""
    for model, per_layer in (("llama-int4", 6), ("llama-fp16", 8)):
        counts = []
        for n_layers in (1, 3):
            config = replace(MODELS[model], n_layers=n_layers)
            result = webgpu_compile.compile(artifacts.model(config, weights=False), check=True, max_length=80)
            counts.append(len(next(iter(result.programs.values()))[0].kernels))
        assert counts[1] - counts[0] == 2 * per_layer
