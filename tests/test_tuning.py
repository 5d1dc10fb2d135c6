"""`--tune`: the choice with times that are computed, and one small real one on software Vulkan."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webgpu_compile
from decoder_cases import of
from rich.console import Console
from webgpu_compile.compiler import CompileError, lowering, measuring, shapes
from webgpu_compile.compiler.lowering import lower_model
from webgpu_compile.compiler.measuring import AdapterFacts, MeasuringProcess, Sample, Slot
from webgpu_compile.compiler.program import Program
from webgpu_compile.compiler.progress import TerminalObserver
from webgpu_compile.compiler.shapes import BY_VENDOR, GENERIC, GemvLayout, neighbours
from webgpu_compile.compiler.summary import plain
from webgpu_compile.compiler.target import SPEC_LIMITS, TARGETS, Target
from webgpu_compile.compiler.tuning import MARGIN, Lower, Tuning, tune, tuned_target

CONFIG = of("tiny-llama")
VARIANTS = ("f16-subgroups", "portable")
OPTIONS: dict[str, Any] = {
    "activations": "int8",
    "max_length": 256,
    "prefill_chunks": (16,),
    "variants": VARIANTS,
}
H200 = AdapterFacts("nvidia", "NVIDIA H200", False, ("shader-f16", "subgroups"))
FIELDS = ("project", "residual", "gated", "head", "tile", "splits")


class FakeMeasurer:
    """Every kernel takes 10 µs, unless `cost` says otherwise of its text."""

    def __init__(self, cost: Callable[[str], float | None], adapter: AdapterFacts = H200) -> None:
        self.adapter = adapter
        self.samples: list[Sample] = []
        self._cost = cost

    def seconds(self, sample: Sample) -> float | None:
        self.samples.append(sample)
        cost = self._cost(sample.wgsl)
        return None if cost is None else 1e-5 * cost + 1e-12 * len(sample.wgsl)  # other texts, other times


@pytest.fixture(scope="module")
def lower(artifacts: Any) -> Lower:
    result = artifacts.result(CONFIG, **OPTIONS, check=True)

    def decode(target: Target) -> Sequence[Program]:
        return lower_model(result.device, result.graphs, result.options, [target], only="decode")[target.name]

    return decode


def tuned(lower: Lower, cost: Callable[[str], float | None]) -> tuple[Tuning, FakeMeasurer]:
    measurer = FakeMeasurer(cost)
    targets = [TARGETS[name] for name in VARIANTS]
    told: list[tuple[int, int]] = []
    found = tune(measurer, lower, targets, 256, lambda *progress: told.append(progress))
    assert [done for done, _ in told] == list(range(len(told)))
    assert told[-1][0] == told[-1][1]
    return found, measurer


def test_the_fastest_of_each_field_is_taken(lower: Lower) -> None:
    def cost(wgsl: str) -> float:
        if "const TILE = 64u" in wgsl:  # of attention and of its reduction
            return 0.5
        if "TILE_OUTPUTS" in wgsl and "const LANES = 32u" in wgsl:
            return 0.25
        return 1

    found, _ = tuned(lower, cost)
    assert found.target.shapes == replace(GENERIC, gated=32, tile=64)
    assert found.target.name == "tuned-nvidia-h200"
    assert found.target.features == TARGETS["f16-subgroups"].features
    layers = CONFIG.n_layers
    assert found.before - found.after == pytest.approx(1e-5 * layers * (0.75 + 2 * 0.5), rel=1e-3)
    chosen = {trial.field: trial.value for trial in found.trials if trial.chosen}
    assert chosen == {field: getattr(found.target.shapes, field) for field in FIELDS}
    assert [trial.field for trial in found.trials if trial.chosen] == list(FIELDS)  # one each, in order


def test_noise_changes_nothing_and_the_choice_repeats(lower: Lower) -> None:
    def noisy(wgsl: str) -> float:
        return 1 - MARGIN * (len(wgsl) % 100) / 101  # no kernel, so no sum, is faster by the margin

    first, _ = tuned(lower, noisy)
    assert first.target.shapes == GENERIC
    assert first.before == first.after
    again, _ = tuned(lower, noisy)
    assert again == first


def test_equal_kernels_are_measured_once(lower: Lower) -> None:
    found, measurer = tuned(lower, lambda wgsl: 1)
    assert len(set(measurer.samples)) == len(measurer.samples)
    # `project` in a model this small: short rows and few of them leave nothing to choose but the threads.
    values = [trial.value for trial in found.trials if trial.field == "project"]
    assert len(values) < len(shapes.CHOICES["project"])


def test_what_cannot_run_is_not_chosen(lower: Lower) -> None:
    def cost(wgsl: str) -> float | None:
        return None if "const TILE = 16u" in wgsl else 1

    found, _ = tuned(lower, cost)
    [refused] = [trial for trial in found.trials if trial.seconds is None]
    assert (refused.field, refused.value, refused.chosen) == ("tile", 16, False)
    with pytest.raises(CompileError, match="NVIDIA H200 does not run the kernels"):
        tuned(lower, lambda wgsl: None)


def test_samples_are_a_sequence_under_way_with_cold_weights(lower: Lower) -> None:
    _, measurer = tuned(lower, lambda wgsl: 1)
    for sample in measurer.samples:
        stated = [slot for slot in sample.bindings if slot.words]
        assert all(slot.words[:7] == (255, 1, 0, 256, 256, 256, 2**30) for slot in stated)
        assert all(not slot.cold for slot in stated)
        assert all(slot.access == "r" for slot in sample.bindings if slot.cold)
    attention = next(s for s in measurer.samples if "k_cache: array" in s.wgsl and "softmax" in s.wgsl)
    assert [slot.cold for slot in attention.bindings] == [False, False, True, True, False, False]
    gemv = next(s for s in measurer.samples if "TILE_OUTPUTS" in s.wgsl)
    assert sum(slot.cold for slot in gemv.bindings) == 2  # the matrix and its scales


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_shape_of_the_table_keeps_to_the_limits(lower: Lower, target: Target) -> None:
    rows = [*BY_VENDOR.values(), *(each for _, each in neighbours(GENERIC))]
    for row in dict.fromkeys(rows):
        for program in lower(replace(target, shapes=row)):
            for kernel in program.kernels:
                assert kernel.workgroup_nbytes <= SPEC_LIMITS["max-compute-workgroup-storage-size"], row
                assert np.prod(kernel.workgroup) <= SPEC_LIMITS["max-compute-invocations-per-workgroup"], row


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        (AdapterFacts("apple", "Apple M4 Max", False, ()), "tuned-apple-m4-max"),
        (AdapterFacts("mesa", "llvmpipe (LLVM 15.0.6, 256 bits)", True, ()), "tuned-mesa-llvmpipe"),
        (AdapterFacts("unknown", "'; DROP\n\u202e/../", False, ()), "tuned-unknown-drop"),
        (AdapterFacts("intel", "", False, ()), "tuned-intel-gpu"),
    ],
)
def test_names_and_first_guess(adapter: AdapterFacts, name: str) -> None:
    target = tuned_target(adapter, [TARGETS[name] for name in VARIANTS])
    assert target.name == name
    assert re.fullmatch(r"[a-z0-9-]+", name)
    assert target.features == ()
    assert target.shapes == BY_VENDOR.get(adapter.vendor, GENERIC)
    with pytest.raises(CompileError, match="runs none of the variants; add portable to --variants"):
        tuned_target(adapter, [TARGETS["f16-subgroups"]])


@pytest.fixture(scope="module")
def few_choices() -> Any:
    """Software Vulkan compiles a kernel for a tenth of a second: three values besides the table's."""
    few = {**dict.fromkeys(FIELDS, ()), "residual": (16,), "tile": (64,)}
    few["head"] = (GemvLayout(64, 16),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "CHOICES", few)
        yield few


@pytest.fixture(scope="module")
def real(artifacts: Any, few_choices: Any) -> tuple[Path, Any]:
    options = {**OPTIONS, "tune": True}
    return artifacts.compile(CONFIG, **options), artifacts.result(CONFIG, **options)


def test_a_real_tune_measures_and_says_so(real: tuple[Path, Any]) -> None:
    folder, result = real
    tuning = result.tuning
    assert len(tuning.trials) == len(FIELDS) + 3
    assert all(1e-7 < trial.seconds < 10 for trial in tuning.trials)
    manifest = json.loads((folder / "manifest.json").read_text())
    first, *others = manifest["variants"]
    assert first["name"] == tuning.target.name
    assert first["adapter"] == {"vendor": tuning.adapter.vendor, "device": tuning.adapter.device}
    assert all("adapter" not in variant for variant in others)
    text = plain(result)
    assert re.search(rf"^{first['name']} +[\d.]+ → [\d.]+ µs  measured on ", text, re.MULTILINE)
    assert (
        len(
            re.findall(
                r"^  (?:project|residual|gated|head|tile|splits) .* µs .*, chosen$", text, re.MULTILINE
            )
        )
        == 6
    )
    assert re.search(r"^  tile +[\d.]+ µs  32 positions", text, re.MULTILINE)


def logits_of(session: Any) -> np.ndarray:
    parts = [session.run({"input_ids": [ids]})["logits"] for ids in ([3, 1, 4, 1, 5], [9], [2])]
    return np.concatenate(parts, axis=1)


def test_other_shapes_give_the_same_answers(artifacts: Any, tmp_path: Path) -> None:
    """Every field is another one; int8: a sum in another order may round to its other neighbour."""
    other = replace(
        GENERIC,
        project=GemvLayout(256, 32),
        residual=16,
        gated=32,
        head=GemvLayout(64, 32),
        tile=16,
        splits=4,
    )
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, each in (("generic", GENERIC), ("other", other)):
            patch.setattr(lowering, "TARGETS", {"portable": replace(TARGETS["portable"], shapes=each)})
            folder = tmp_path / name
            webgpu_compile.compile(artifacts.model(CONFIG), folder, **OPTIONS | {"variants": ("portable",)})
            with webgpu_compile.load(folder) as session:
                found[name] = logits_of(session)
    assert np.abs(found["other"] - found["generic"]).max() <= 0.03


def test_the_runtime_takes_it_here_and_leaves_it_elsewhere(real: tuple[Path, Any], tmp_path: Path) -> None:
    folder, result = real
    name = result.tuning.target.name
    with webgpu_compile.load(folder) as session:
        assert session.variant == name
        assert session.variant_reason == f"{name}: the artifact's first choice"
        here = logits_of(session)
    elsewhere = tmp_path / "out"
    shutil.copytree(folder, elsewhere)
    manifest = json.loads((elsewhere / "manifest.json").read_text())
    manifest["variants"][0]["adapter"] = {"vendor": "nvidia", "device": "NVIDIA H200"}
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    with webgpu_compile.load(elsewhere) as session:
        assert session.variant == "f16-subgroups"
        assert session.variant_reason == (
            f"f16-subgroups: the best that this adapter runs ({name} needs the adapter NVIDIA H200)"
        )
        assert np.abs(logits_of(session) - here).max() <= 0.03
    with webgpu_compile.load(elsewhere, variant=name) as session:
        assert np.array_equal(logits_of(session), here)


def test_without_an_adapter_one_sentence(artifacts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(variable, "/nonexistent.json")
    command = [sys.executable, "-m", "webgpu_compile.compiler.cli", str(artifacts.model(CONFIG)), "--tune"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --tune, WebGPU: no adapter was found; install the GPU's Vulkan driver"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_measuring_process_that_dies_is_one_sentence(monkeypatch: Any) -> None:
    monkeypatch.setattr(measuring, "MODULE", "there_is_no_such_module")
    with pytest.raises(CompileError, match="--tune: the process that measures has died"):
        MeasuringProcess()


def test_a_kernel_that_does_not_compile_is_no_end() -> None:
    good = """
        @group(0) @binding(0) var<storage, read> x: array<f32>;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) i: vec3<u32>) { y[i.x] = x[i.x]; }
    """
    slots = (Slot("r", 1 << 20, cold=True), Slot("w", 4096))
    with MeasuringProcess() as measurer:
        assert measurer.adapter.device
        assert measurer.seconds(Sample("no WGSL", (1, 1, 1), slots)) is None
        assert (
            measurer.seconds(Sample(good.replace("array<f32>", "array<f32, 2000>"), (1, 1, 1), slots)) is None
        )
        assert 1e-7 < (measurer.seconds(Sample(good, (16, 1, 1), slots)) or 0) < 1


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with TerminalObserver(Console(file=out, force_terminal=True, width=80)) as observer:
        observer.stage("looking at the GPU")
        for done in range(11):
            observer.trials(done, 10)
        observer.stage("lowering to kernels")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"tuning ━+ +0/10", text)
    assert text.index("looking at the GPU") < text.index("tuning") < text.index("lowering to kernels")
