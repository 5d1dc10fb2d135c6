"""webgpu-bench on software Vulkan: it runs, its figures are consistent, its forms are complete."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from decoder_cases import of
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.bench import Result, Trial, plan
from webgpu_compile.runtime.bench_cli import main
from webgpu_compile.runtime.programs import Dispatch

CONFIG = of("tiny-llama", n_layers=1)


@pytest.fixture(scope="module")
def folder(artifacts: Any) -> Path:
    folder: Path = artifacts.compile(CONFIG, activations="int8", max_length=256)
    return folder


def bench(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    output = bench(folder, "-p", "5,20", "-n", 4, "-d", "0,8", "-r", 2, "-o", "json")
    found: dict[str, Any] = json.loads(output)
    return found


def test_every_test_has_its_samples(document: dict[str, Any]) -> None:
    names = [test["test"] for test in document["tests"]]
    assert names == ["pp5", "pp20", "tg4", "pp5 @ d8", "pp20 @ d8", "tg4 @ d8"]
    for test in document["tests"]:
        low, high = sorted(test["samples_ts"])
        assert 0 < low <= test["avg_ts"] <= high
        assert test["stddev_ts"] == pytest.approx((high - low) / 2**0.5)


def test_ceilings_are_those_of_a_computer(document: dict[str, Any]) -> None:
    for name in ("read", "int8", "f32"):
        assert 1e6 < document["ceilings"][name] < 1e16, name


def test_every_dispatch_of_a_program_is_timed(document: dict[str, Any], folder: Path) -> None:
    variant = next(v for v in open_artifact(folder).variants if v.name == document["variant"])
    seen = [(program["program"], program["depth"]) for program in document["programs"]]
    assert ("decode", 0) in seen
    assert ("decode", 8) in seen
    assert len(set(seen)) == len(seen)
    for program in document["programs"]:
        steps = variant.programs[program["program"]].steps
        assert program["n_dispatches"] == len(steps)
        assert sum(kernel["count"] for kernel in program["kernels"]) == len(steps)
        names = {step.kernel for step in steps if isinstance(step, Dispatch)}
        assert {kernel["kernel"] for kernel in program["kernels"]} == names
        assert program["gpu_seconds"] > 0
        assert program["host_seconds"] > 0
        assert all(kernel["seconds"] > 0 for kernel in program["kernels"])


def test_bytes_of_a_matrix_are_its_weights(document: dict[str, Any]) -> None:
    """The LM head of a tiny Llama: 4-bit weights and a scale of two bytes per 32, and little else."""
    decode = next(program for program in document["programs"] if program["program"] == "decode")
    head = next(kernel for kernel in decode["kernels"] if kernel["kernel"].endswith("_argmax"))
    n_weights = CONFIG.vocab_size * CONFIG.hidden_size
    assert n_weights * (0.5 + 2 / 32) <= head["nbytes"] <= n_weights * (0.5 + 2 / 32) + 16 * CONFIG.vocab_size
    assert head["n_ops"] == 2 * n_weights


def test_forms(folder: Path) -> None:
    options = (folder, "-p", 0, "-n", 3, "-r", 2, "--no-kernels", "-o")
    table = bench(*options, "md")
    assert "| tg3  |" in table
    assert "±" in table
    [row] = csv.DictReader(io.StringIO(bench(*options, "csv")))
    [line] = bench(*options, "jsonl").splitlines()
    assert row["test"] == json.loads(line)["test"] == "tg3"
    assert float(row["avg_ts"]) > 0
    assert json.loads(bench(*options, "json"))["programs"] == []


def test_markdown_names_kernels_and_ceilings(folder: Path) -> None:
    table = bench(folder, "-p", 0, "-n", 2, "-r", 1)
    assert "Ceilings of this device" in table
    assert "gemv_q4_int8_argmax" in table
    assert re.search(
        r"decode at depth 0: \d+ dispatches, GPU .* host .* to encode \(\d+\.\d+ µs per dispatch\)\. tg2: ",
        table,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-p", "600"), "does not fit the cache of 256 positions"),
        (("-p", "x"), "is no list of lengths"),
        (("-p", "8", "-n", "4", "--variant", "none"), "variant 'none'"),
    ],
)
def test_bad_options_are_one_sentence(folder: Path, options: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(main, [str(folder), *options])
    assert done.exit_code == 2
    assert says in done.output
    assert "Traceback" not in done.output


def test_plan_is_in_llama_benchs_order() -> None:
    assert [test.name for test in plan([512, 0], [128], [0, 64])] == [
        "pp512",
        "tg128",
        "pp512 @ d64",
        "tg128 @ d64",
    ]
    assert Result(Trial(1, 0, 0), (4.0,)).deviation == 0
