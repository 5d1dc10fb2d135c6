"""The command as a user meets it: what it prints where, its stages, its help."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import webgpu_compile
from decoder_cases import of
from webgpu_compile.compiler.cli import main
from webgpu_compile.compiler.options import STAGES

ESCAPE = "\x1b"
LLAMA = of("tiny-llama", n_layers=1)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def value(summary: str, label: str) -> str:
    """The value of a line of the summary."""
    found = re.search(rf"^ *{re.escape(label)}  +(.*)$", summary, re.MULTILINE)
    assert found, f"no line {label!r} in\n{summary}"
    return re.split(r"  +", found[1])[0]


def in_a_terminal(arguments: list[str], columns: int = 100) -> tuple[int, str]:
    """(exit code, output) of a process whose stdout and stderr are a terminal."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen(arguments, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    chunks = []
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        try:
            chunk = os.read(master, 65536) if ready else b""
        except OSError:  # Linux says EIO when the last writer has closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    return child.wait(timeout=60), b"".join(chunks).decode()


# -- what is printed


def test_the_summary(artifacts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = artifacts.model(LLAMA)
    code, out, err = run(capsys, model, "-o", tmp_path / "out", "--max-length", 64)
    assert (code, err) == (0, "")
    assert ESCAPE not in out
    assert all(line == line.rstrip() for line in out.splitlines())
    result = artifacts.result(LLAMA, max_length=64)
    counts = result.device.counts
    n_files = sum(path.is_file() for path in (tmp_path / "out").rglob("*"))
    assert re.match(rf"Compiled model-\d+: .*/out \({n_files} files, [\d.]+ .iB\)\n\n", out)
    assert value(out, "nodes") == f"{counts.nodes_before} → {counts.nodes_after}"
    assert value(out, "Memcpy nodes") == f"{counts.memcpy_before} → 0"
    assert counts.memcpy_before >= 1
    assert value(out, "host nodes") == f"{counts.host_nodes_before} → 0"
    assert counts.host_nodes_before >= 1
    decode = next(p.program for p in result.plan.variants["portable"] if p.program.name == "decode")
    assert value(out, "dispatches per token") == value(out, "decode") == str(len(decode.kernels))
    assert value(out, "shaders") == str(len(list((tmp_path / "out/shaders").iterdir())))
    # 1 layer, keys and values, 1 or more heads: bytes of f16 per position times 64 positions
    cache = result.device.interface.caches[0]
    assert value(out, "KV cache") == f"{2 * 64 * cache.kv_heads * cache.head_size * 2 / 1024:.1f} KiB"
    assert "64 tokens" in out
    for label in ("programs", "prefill_16", "kernels", "GPU memory", "weights", "activations"):
        assert value(out, label)


def test_the_host_driven_form_is_shown_as_one(artifacts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, artifacts.model(LLAMA), "--check", "--sequence-length", "host")
    assert value(out, "Memcpy nodes").endswith("→ 1")


def test_quiet_prints_nothing(artifacts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, artifacts.model(LLAMA), "-o", tmp_path / "out", "-q") == (0, "", "")
    assert (tmp_path / "out/manifest.json").is_file()


def test_a_pipe_gets_no_escape_codes(artifacts: Any, tmp_path: Path) -> None:
    """Not even where FORCE_COLOR is set, as CI services do."""
    done = subprocess.run(
        [sys.executable, "-m", "webgpu_compile", str(artifacts.model(LLAMA)), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ESCAPE not in done.stdout
    assert done.stdout.startswith("Compiled ")


def test_a_terminal_gets_progress_and_colour(artifacts: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "webgpu_compile",
        str(artifacts.model(LLAMA)),
        "-o",
        str(tmp_path / "out"),
    ]
    code, text = in_a_terminal(command)
    assert code == 0, text
    for stage in ("importing", "lowering to kernels", "scheduling", "emitting WGSL", "packing weights"):
        assert stage in text
    assert ESCAPE + "[?25h" in text  # the cursor is back
    summary = text[text.rindex("Compiled ") :]
    assert ESCAPE in summary
    assert "importing" not in summary


def test_a_terminal_with_quiet_stays_empty(artifacts: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "webgpu_compile",
        str(artifacts.model(LLAMA)),
        "-o",
        str(tmp_path / "out"),
    ]
    assert in_a_terminal([*command, "--quiet"]) == (0, "")


def test_brackets_in_a_path_are_not_markup(artifacts: Any, tmp_path: Path) -> None:
    out = tmp_path / "[bold]out[-/x]"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "webgpu_compile", str(artifacts.model(LLAMA)), "-o", str(out)]
    code, text = in_a_terminal(command, columns=300)
    assert code == 0, text
    assert "[bold]out[-" in text


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the pipe breaks at exit, or at the first write
def test_a_reader_that_leaves(unbuffered: str, artifacts: Any) -> None:
    command = [sys.executable, "-m", "webgpu_compile", str(artifacts.model(LLAMA)), "--check"]
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# -- what it does


def test_check_reads_no_weights(artifacts: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    skeleton = artifacts.model(LLAMA, weights=False)
    assert not list(skeleton.parent.glob("*.data"))
    code, out, err = run(capsys, skeleton.parent, "--check", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith(f"{skeleton.parent.name} compiles.\n")
    assert value(out, "dispatches per token")
    assert value(out, "weights")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_be_dumped_and_stopped_at(
    stage: str, artifacts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "dump"
    code, out, err = run(capsys, artifacts.model(LLAMA), "--dump", dump, "--stop-after", stage)
    assert (code, err) == (0, "")
    assert f"stopped after stage {stage}, nothing written" in out
    assert os.listdir(tmp_path) == ["dump"]
    reached = STAGES.index(stage)
    graphs = sorted(path.name for path in dump.glob("*.onnx"))
    assert graphs[0] == "00-import.onnx"
    assert ("01-insert_memcpy.onnx" in graphs) == (reached >= STAGES.index("placement"))
    assert (len(graphs) > 4) == (reached >= STAGES.index("graph"))
    texts = sorted(path.name for path in dump.glob("*.txt"))
    lowered = [f"lower-{v}-{p}.txt" for v in ("f16-subgroups", "portable") for p in ("decode", "prefill_16")]
    assert set(texts) >= set(lowered if reached >= STAGES.index("lower") else [])
    assert ("plan.txt" in texts) == (reached >= STAGES.index("plan"))
    assert all((dump / name).read_text().strip() for name in texts)
    if reached < STAGES.index("lower"):
        assert not texts


def test_every_dumped_graph_is_a_model_that_loads(artifacts: Any, tmp_path: Path) -> None:
    """ONNX Runtime loads each: types, shapes and external data fit."""
    webgpu_compile.compile(artifacts.model(LLAMA), dump=str(tmp_path), stop_after="graph")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    files = sorted(tmp_path.glob("*.onnx"))
    assert len(files) > 4
    for file in files:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        assert "logits" in [output.name for output in session.get_outputs()], file.name
        assert onnx.load(file, load_external_data=False).ir_version >= 10


def test_stages_end_where_they_say(artifacts: Any) -> None:
    reached = {}
    for stage in STAGES:
        result = webgpu_compile.compile(artifacts.model(LLAMA), stop_after=stage)
        reached[stage] = [name for name in ("programs", "plan", "shaders", "files") if getattr(result, name)]
    assert reached == {
        "import": [],
        "placement": [],
        "graph": [],
        "lower": ["programs"],
        "plan": ["programs", "plan"],
        "emit": ["programs", "plan", "shaders"],
    }


def test_module_and_function_do_what_the_command_does(artifacts: Any, tmp_path: Path) -> None:
    model = artifacts.model(LLAMA)
    options = [
        "--max-length",
        "64",
        "--prefill-chunks",
        "8,4",
        "--variants",
        "portable",
        "--activations",
        "float",
    ]
    subprocess.run(
        [sys.executable, "-m", "webgpu_compile", str(model), "-o", str(tmp_path / "a"), *options], check=True
    )
    webgpu_compile.compile(
        str(model),
        str(tmp_path / "b"),
        max_length=64,
        prefill_chunks=(4, 8),
        variants=("portable",),
        activations="float",
    )
    files = [
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "a", tmp_path / "b")
    ]
    assert files[0] == files[1]
    assert b'"prefill_4"' in files[0][Path("manifest.json")]


def test_dims_are_a_dictionary_in_python(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 22]> g (float[h, w] x) => (float[h, w] y) { y = Neg (x) }'
    (tmp_path / "net.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = webgpu_compile.compile(tmp_path / "net.onnx", check=True, dims={"h": 3, "w": 5})
    assert result.programs is not None
    assert result.programs["portable"][0].tensors["y"].shape == (3, 5)


def test_python_errors() -> None:
    with pytest.raises(TypeError, match="max_lenght"):
        webgpu_compile.compile("model.onnx", "out", max_lenght=3)
    with pytest.raises(webgpu_compile.CompileError, match="no output folder is given"):
        webgpu_compile.compile("model.onnx")
    with pytest.raises(webgpu_compile.CompileError, match="--variants"):
        webgpu_compile.compile("model.onnx", "out", variants="portable")


# -- help


@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_and_teaches(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= columns
    for taught in (
        "webgpu-compile model/ -o out/",
        "webgpu-run out/ --prompt",
        "webgpu-inspect out/",
        "--check",
    ):
        assert taught in out
    assert set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.MULTILINE)) == {
        "--output",
        "--max-length",
        "--dim",
        "--batch",
        "--prefill-chunks",
        "--variants",
        "--activations",
        "--sequence-length",
        "--attention-dispatch",
        "--disable-pass",
        "--tune",
        "--check",
        "--dump",
        "--stop-after",
        "--quiet",
        "--version",
        "--help",
    }


def test_help_does_not_wait_for_onnx() -> None:
    code = (
        "import sys, webgpu_compile.compiler.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print({'onnx', 'networkx', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out == f"webgpu-compile, version {webgpu_compile.compiler.__version__}\n"
