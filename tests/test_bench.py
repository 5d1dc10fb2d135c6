"""webgpu-bench on software Vulkan: it runs, its figures are consistent, its forms are complete."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from decoder_cases import of
from webgpu_compile.runtime import bench_peer
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.bench import Result, Trial, plan
from webgpu_compile.runtime.bench_cli import main
from webgpu_compile.runtime.bench_peer import PEERS
from webgpu_compile.runtime.device import is_software, request_adapter
from webgpu_compile.runtime.programs import Dispatch
from webgpu_compile.runtime.session import Session

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
    table = bench(folder, "-p", 0, "-n", 2, "-r", 1, "--variant", "portable")
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
        (("--sampling", "0.9"), "'0.9' is not like top_p=0.9,temperature=0.8"),
        (("--sampling", "speed=2"), "'speed' is none of temperature, top_k"),
        (("--sampling", "top_k=1.5", "-p", "0", "-n", "4"), "top_k: is 1.5; give a whole number"),
        (
            ("--sampling", "top_k=1", "--peer", "onnxruntime-webgpu", "--model", "x"),
            "--sampling: cannot be compared: the peer is greedy; leave out one of them",
        ),
    ],
)
def test_bad_options_are_one_sentence(folder: Path, options: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(main, [str(folder), *options])
    assert done.exit_code == 2
    assert says in done.output
    assert "Traceback" not in done.output


def test_sampling_is_measured_beside_greedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    generate = Session.generate

    def noted(self: Session, ids: Any, n: int, *arguments: Any, **options: Any) -> Any:
        asked.append(
            {key: value for key, value in options.items() if key in ("top_p", "top_k", "temperature")}
        )
        return generate(self, ids, n, *arguments, **options)

    monkeypatch.setattr(Session, "generate", noted)
    settings = ("--sampling", "top_p=0.9,temperature=1.5", "--sampling", "top_k=3")
    options = ("-p", "0", "-n", "6", "-r", "1", "-o", "json", *settings)
    document = json.loads(bench(folder, *options))
    names = ["tg6", "tg6 top_p=0.9,temperature=1.5", "tg6 top_k=3"]
    assert [test["test"] for test in document["tests"]] == names
    assert document["tests"][1]["sampling"] == {"top_p": 0.9, "temperature": 1.5}
    assert asked.count({"top_p": 0.9, "temperature": 1.5}) == asked.count({"top_k": 3}) == 2
    assert {program["program"] for program in document["programs"]} == {"decode"}


def test_plan_is_in_llama_benchs_order() -> None:
    assert [test.name for test in plan([512, 0], [128], [0, 64])] == [
        "pp512",
        "tg128",
        "pp512 @ d64",
        "tg128 @ d64",
    ]
    assert Result(Trial(1, 0, 0), (4.0,)).deviation == 0


# -- side by side with another runtime


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Puts the fake in the place of the only peer; returns its log."""

    def install(*failure: str) -> Path:
        script, log = Path(__file__).with_name("fake_peer.py"), tmp_path / "log"
        wrapper = tmp_path / "peer.py"
        wrapper.write_text(
            f"import runpy, sys\nsys.argv = {[str(script), str(log), *failure]}\n"
            f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        )
        monkeypatch.setitem(PEERS, "onnxruntime-webgpu", str(wrapper))
        return log

    return install


def peer_options(artifacts: Any) -> list[object]:
    return ["--peer", "onnxruntime-webgpu", "--model", artifacts.model(CONFIG), "--no-kernels"]


def test_a_peer_is_asked_the_same_in_turns(folder: Path, artifacts: Any, fake: Any) -> None:
    log = fake()
    options = [*peer_options(artifacts), "-p", 4, "-n", 6, "-d", "0,8", "-r", 2, "-o", "json"]
    document = json.loads(bench(folder, *options))
    beginning, *requests = map(json.loads, log.read_text().splitlines())
    assert beginning["model"] == str(artifacts.model(CONFIG).resolve())
    assert beginning["capacity"] == 256
    assert beginning["software"] == ("1" if is_software(request_adapter()) else "")
    shapes = [(len(r["before"]), len(r["prompt"]), r["generate"]) for r in requests]
    tests = [(0, 4, 0), (1, 0, 6), (8, 4, 0), (8, 0, 6)]
    assert shapes == [shape for shape in tests for _ in range(3)] + [(16, 0, 16)]
    found = document["peer"]
    assert found["name"] == "a fake | peer"
    assert [test["avg_ts"] for test in found["tests"]] == [2, 3, 2, 3]
    for ours, theirs in zip(document["tests"], found["tests"], strict=True):
        assert ours["test"] == theirs["test"]
        assert len(theirs["samples_ts"]) == 2
        assert theirs["ratio"] == ours["avg_ts"] / theirs["avg_ts"]
    assert (found["n_equal"], found["n_compared"]) == (0, 16)  # it always says 0


def test_the_table_has_both(folder: Path, artifacts: Any, fake: Any) -> None:
    fake()
    text = bench(folder, *peer_options(artifacts), "-p", 0, "-n", 6, "-r", 1)
    assert (
        "Side by side with a fake | peer, turn by turn; of 16 greedy tokens the first 0 are the same." in text
    )
    row = next(line for line in text.splitlines() if "3.00 ± 0.00" in line)
    _, name, ours, theirs, ratio, _ = (cell.strip() for cell in row.split("|"))
    assert (name, theirs) == ("tg6", "3.00 ± 0.00")
    assert float(ratio) == pytest.approx(float(ours.split()[0]) / 3, abs=0.01)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("refuses", "the peer: fails (ModuleNotFoundError: No module named 'onnxruntime'); pip install"),
        ("dies", "the peer: ended without an answer (exit code 3)"),
    ],
)
def test_a_peer_that_fails(folder: Path, artifacts: Any, fake: Any, failure: str, message: str) -> None:
    fake(failure)
    done = CliRunner().invoke(main, [str(folder), *map(str, peer_options(artifacts)), "-n", "2", "-p", "0"])
    assert done.exit_code == 2
    assert message in done.stderr


def test_peer_and_model_go_together(folder: Path) -> None:
    for options in (["--model", "x"], ["--peer", "onnxruntime-webgpu"]):
        done = CliRunner().invoke(main, [str(folder), *options])
        assert done.exit_code == 2
        assert "--peer and --model: go together; give both or none" in done.stderr
    options = ["--peer", "onnxruntime-webgpu", "--model", "nowhere", "--no-kernels", "-p", "8", "-n", "0"]
    done = CliRunner().invoke(main, [str(folder), *options])
    assert "--model nowhere: is no ONNX file, nor a folder with model.onnx; give one" in done.stderr


def test_a_peers_process_imports_nothing_of_ours() -> None:
    source = (Path(bench_peer.__file__).with_name(PEERS["onnxruntime-webgpu"])).read_text()
    assert "webgpu_compile import" not in source
    assert "from ." not in source
