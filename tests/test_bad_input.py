"""What a user can get wrong when compiling: one sentence, exit code 2, and nothing lost or half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import webgpu_compile
from decoder_cases import of
from webgpu_compile.compiler.cli import main
from webgpu_compile.compiler.emit import artifact
from webgpu_compile.compiler.errors import CompileError

HEAD = '<ir_version: 10, opset_import: ["" : 22]>\n'
Refused = Callable[..., str]
MODULE = [sys.executable, "-m", "webgpu_compile"]


def write_model(folder: Path, text: str, head: str = HEAD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "net.onnx"
    path.write_bytes(onnx.parser.parse_model(head + text).SerializeToString())
    return path


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below `folder` with what it holds: bytes, a link's target, None for a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A model that compiles: y = -x."""
    return write_model(tmp_path / "model", "g (float[4] x) => (float[4] y) { y = Neg (x) }")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs the command, which must refuse: returns the sentence. What was in tmp_path is as it was."""

    def run(*arguments: object) -> str:
        before = contents(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        assert contents(tmp_path) == before
        assert err.startswith("error: ")
        assert err.endswith(".\n")
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
        return err.removeprefix("error: ").rstrip("\n")

    return run


def test_a_good_model_is_not_refused(net: Path, tmp_path: Path) -> None:
    """Or all of these tests would pass for another reason."""
    with pytest.raises(SystemExit) as ended:
        main([str(net), "-o", str(tmp_path / "out"), "--quiet"])
    assert ended.value.code == 0
    assert (tmp_path / "out/manifest.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


# -- not a model


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "is not an ONNX model", id="empty"),
        pytest.param(b"hello, I am text\n" * 40, "is not an ONNX model", id="text"),
        pytest.param(b"<!doctype html><html>sign in</html>", "is not an ONNX model", id="a web page"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\n", "is not an ONNX model", id="a Git LFS pointer"
        ),
        pytest.param(b"\x80\x02}q\x00.", "is not an ONNX model", id="a pickle"),
    ],
)
def test_not_an_onnx_file(content: bytes, problem: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    sentence = refused(tmp_path / "net.onnx", "-o", tmp_path / "out")
    assert sentence.startswith(f"net.onnx: {problem}")
    assert "give a .onnx file" in sentence


def test_every_truncation_is_refused(net: Path, refused: Refused, tmp_path: Path) -> None:
    whole = net.read_bytes()
    for size in range(0, len(whole) - 1, 3):
        net.write_bytes(whole[:size])
        assert refused(net, "--check").startswith("net.onnx: ")


def test_damaged_bytes_never_end_in_a_traceback(
    artifacts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of a decoder's graph changed at random: it still compiles, or one sentence says why not."""
    whole = artifacts.model(of("tiny-llama", n_layers=1), weights=False).read_bytes()
    rng = random.Random(7)
    path = tmp_path / "net.onnx"
    refusals = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(SystemExit) as ended:
            main([str(path), "--check", "--quiet"])
        err = capsys.readouterr().err
        assert ended.value.code in (0, 2), err
        assert err.count("\n") == (ended.value.code == 2)
        refusals += ended.value.code == 2
    assert refusals > 20  # the damage does reach what the importer looks at


def test_a_path_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "there is no such file or folder; check the path" in refused(tmp_path / "no.onnx", "--check")
    assert r"no\x1b[2J\n.onnx: there is no" in refused(tmp_path / "no\x1b[2J\n.onnx", "--check")
    assert "File name too long" in refused(tmp_path / ("n" * 300), "--check")


def test_a_folder_without_a_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    assert "the folder has no .onnx file" in refused(tmp_path, "-o", tmp_path / "out")


def test_control_characters_of_a_model_stay_off_the_terminal(refused: Refused, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Hardmax (x) }")
    model.graph.node[0].name = "evil\x1b[2J\nerror: none"
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    assert "evil" in refused(
        tmp_path / "net.onnx", "--check"
    )  # that it is one printable line is checked there


# -- weights in another file


def decoder(artifacts: Any, folder: Path) -> Path:
    source = artifacts.model(of("tiny-llama", n_layers=1)).parent
    shutil.copytree(source, folder)
    return folder


def test_truncated_external_data(artifacts: Any, refused: Refused, tmp_path: Path) -> None:
    model = decoder(artifacts, tmp_path / "model")
    with (model / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    sentence = refused(model, "-o", tmp_path / "out")
    assert "but model.onnx.data has only 1000; the file is cut short" in sentence


def test_missing_external_data(
    artifacts: Any, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = decoder(artifacts, tmp_path / "model")
    (model / "model.onnx.data").unlink()
    sentence = refused(model, "-o", tmp_path / "out")
    assert "its external data file 'model.onnx.data' is missing; put it beside model.onnx" in sentence
    with pytest.raises(SystemExit) as ended:
        main([str(model), "--check"])
    assert ended.value.code == 0
    assert "compiles." in capsys.readouterr().out


# -- what cannot be compiled


@pytest.mark.parametrize(
    ("text", "arguments", "parts"),
    [
        pytest.param(
            "g (float[4] x) => (float[4] y) { [one] y = Hardmax (x) }",
            (),
            ("node one", "operator Hardmax cannot run on the GPU", "see docs/ops.md"),
            id="an operator without a lowering",
        ),
        pytest.param(
            "g (float[height, 4] x) => (float[height, 4] y) { y = Neg (x) }",
            (),
            ("dimension height is unbound", "use --dim height=SIZE"),
            id="an unbound dimension",
        ),
        pytest.param(
            "g (float[height, 4] x) => (float[height, 4] y) { y = Neg (x) }",
            ("--dim", "width=3"),
            ("--dim width", "no such dimension", "it has: height"),
            id="a dimension that the model has not",
        ),
        pytest.param(
            "g (bool[1] x) => (float[1, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> "
            "{ c = Constant <value_ints = [3000000000]> () d = Constant <value_ints = [1]> () "
            "a = Where (x, c, d) y = Gather <axis = 0> (w, a) }",
            (),
            ("Where node a", "3000000000, which 32 bits cannot", "export the model with smaller constants"),
            id="a constant beyond 32 bits",
        ),
    ],
)
def test_graphs(
    text: str, arguments: tuple[str, ...], parts: tuple[str, ...], refused: Refused, tmp_path: Path
) -> None:
    sentence = refused(write_model(tmp_path, text), "-o", tmp_path / "out", *arguments)
    for part in parts:
        assert part in sentence


def test_a_bound_dimension_compiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path, "g (float[height, 4] x) => (float[height, 4] y) { y = Neg (x) }")
    with pytest.raises(SystemExit) as ended:
        main([str(path), "--check", "--dim", "height=3"])
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("opset", [99, 26])
def test_an_opset_too_new(opset: int, refused: Refused, tmp_path: Path) -> None:
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    path = write_model(tmp_path, "g (float[4] x) => (float[4] y) { y = Neg (x) }", head)
    assert f"uses opset {opset}, newer than 25; export it with opset 25 or lower" in refused(path, "--check")


def test_an_opset_too_old(refused: Refused, tmp_path: Path) -> None:
    """Add-6 broadcasts from an axis on: to read it as Add-7 would be wrong, silently."""
    head = '<ir_version: 10, opset_import: ["" : 6]>\n'
    path = write_model(tmp_path, "g (float[4] x) => (float[4] y) { y = Neg (x) }", head)
    assert "uses opset 6, older than 7; convert it with onnx.version_converter" in refused(path, "--check")


# -- options


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--max-length", "4097"), ("--max-length 4097", "the model's context has 2048", "at most 2048")),
        (("--max-length", "0"), ("--max-length", "0 is too short", "give at least 2")),
        (("--max-length", "1"), ("--max-length", "1 is too short", "give at least 2")),
        (("--max-length", "many"), ("--max-length", "'many' is not a valid integer")),
        (("--batch", "2"), ("--batch", "2 rows at once are not supported", "use --batch 1")),
        (
            ("--variants", "portable,fast"),
            ("--variants", "'fast' is not a choice", "f16-subgroups, subgroups"),
        ),
        (("--prefill-chunks", "16,x"), ("--prefill-chunks", "as in --prefill-chunks 16,128")),
        (("--prefill-chunks", "1"), ("--prefill-chunks", "1 is no list", "sizes of at least 2")),
        (("--prefill-chunks", "0"), ("--prefill-chunks", "not a list of sizes")),
        (("--prefill-chunks", ""), ("--prefill-chunks", "not a list of sizes")),
        (("--dim", "height"), ("--dim", "'height' is not NAME=SIZE", "as in --dim height=224")),
        (("--dim", "height=-3"), ("--dim", "NAME=SIZE with a positive size")),
        (("--dim", "height=" + "9" * 5000), ("--dim", "NAME=SIZE with a positive size")),
        (("--dim", "a=1", "--dim", "a=2"), ("--dim", "'a' is given as 1 and as 2")),
        (("--disable-pass", "fuse_all"), ("--disable-pass fuse_all", "choose from fuse_matmul_bias, ")),
        (
            ("--stop-after", "lunch"),
            ("--stop-after", "'import', 'placement', 'graph', 'lower', 'plan', 'emit'"),
        ),
        (("--activations", "int4"), ("--activations", "'auto', 'float', 'int8'")),
        (("--sequence-length", "cpu"), ("--sequence-length", "'gpu', 'host'")),
        (("--dumpp", "x"), ("--dumpp", "there is no such option", "did you mean --dump")),
        (("--colour", "x"), ("--colour", "there is no such option", "see webgpu-compile --help")),
        (("--max-length",), ("--max-length", "requires an argument")),
        (("a", "b"), ("unexpected extra argument", "see webgpu-compile --help")),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_options(
    arguments: tuple[str, ...], parts: tuple[str, ...], artifacts: Any, refused: Refused, tmp_path: Path
) -> None:
    model = artifacts.model(of("tiny-llama", n_layers=1))
    sentence = refused(model, "-o", tmp_path / "out", *arguments)
    for part in parts:
        assert part in sentence


def test_no_arguments(refused: Refused, net: Path) -> None:
    assert "no model is given; name a .onnx file or a model folder" in refused()
    assert "no output folder is given; add -o DIR" in refused(net)


def test_a_cache_over_the_binding_limit(artifacts: Any, refused: Refused, tmp_path: Path) -> None:
    """64 positions of 2 MiB are the 128 MiB that every GPU can bind."""
    config = of("tiny-llama", n_layers=1, n_heads=8192, n_kv_heads=8192, head_size=128, max_positions=128)
    model = artifacts.model(config, weights=False)
    sentence = refused(model, "--check", "--max-length", "65")
    assert "--max-length 65: cache past_key_values.0.key would be 130 MiB, over WebGPU's 128 MiB" in sentence
    assert sentence.endswith("give at most 64.")


# -- the output folder


def test_out_is_a_foreign_folder(net: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    assert "exists and was not written by webgpu-compile" in refused(net, "-o", tmp_path / "out")


def test_out_has_the_manifest_of_something_else(net: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(
        json.dumps({"name": "a web app", "of": '"format": "webgpu-compile"'})
    )
    assert "was not written by webgpu-compile" in refused(net, "-o", tmp_path / "out")


@pytest.mark.parametrize("added", [".git/HEAD", "notes.txt", "shaders/mine.txt", "weights/old.bin"])
def test_out_is_ours_but_holds_more(added: str, net: Path, refused: Refused, tmp_path: Path) -> None:
    """A published folder is a Git repository, perhaps: replacing it would lose that."""
    out = tmp_path / "out"
    webgpu_compile.compile(net, out)
    (out / added).parent.mkdir(exist_ok=True)
    (out / added).write_text("mine")
    named = added.split("/")[0] if added.startswith(".git") else added
    assert f"also holds {named}, which webgpu-compile did not write; move it away" in refused(net, "-o", out)


def test_out_is_a_file(net: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a letter")
    assert "out': is a file; give a folder" in refused(net, "-o", tmp_path / "out")


def test_out_is_the_model_folder(net: Path, refused: Refused) -> None:
    assert "was not written by webgpu-compile" in refused(net.parent, "-o", net.parent)


@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_out_is_a_link(target: str, net: Path, refused: Refused, tmp_path: Path) -> None:
    webgpu_compile.compile(net, tmp_path / "real")
    (tmp_path / "out").symlink_to(target)
    assert "is a symbolic link; give the folder itself" in refused(net, "-o", tmp_path / "out")


def test_out_is_the_current_folder(
    net: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is the current folder; give a folder inside it" in refused(net, "-o", ".")


@pytest.mark.parametrize("place", ["letter/out", "/proc/out", "/dev/null/out"])
def test_out_has_a_parent_that_cannot_be_written(
    place: str, net: Path, refused: Refused, tmp_path: Path
) -> None:
    """Permissions do not stop root, who may run this: these places stop anyone."""
    (tmp_path / "letter").write_text("a file")
    assert "cannot be written: " in refused(net, "-o", tmp_path / place)


def test_out_is_ours_and_is_replaced(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    webgpu_compile.compile(net, out)
    (out / "shaders/stale.wgsl").write_text("of an older compiler")
    node = out.stat().st_ino
    webgpu_compile.compile(net, out)
    assert not (out / "shaders/stale.wgsl").exists()
    assert out.stat().st_ino != node  # another folder was renamed to it, not this one rewritten
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


# -- while writing


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "step", ["write_shaders", "write_shard", "copy_model_files", "write_json", "replacing"]
)
@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing an old one"])
def test_a_full_disk_at_every_step(
    step: str, old: bool, net: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside the tokenizer, so that every step has something to write.
    write_model(net.parent, "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul (x, w) }")
    if old:
        webgpu_compile.compile(net, tmp_path / "out")
    if step == "replacing":
        monkeypatch.setattr(artifact.tempfile, "mkdtemp", full_disk)
    else:
        monkeypatch.setattr(f"webgpu_compile.compiler.pipeline.{step}", full_disk)
    assert "out': the disk is full; free some space" in refused(net, "-o", tmp_path / "out")


def test_folders_made_on_the_way_go_with_a_failure(
    net: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setattr("webgpu_compile.compiler.pipeline.write_json", full_disk)
    refused(net, "-o", tmp_path / "a/b/c/out")
    assert os.listdir(tmp_path / "a") == []
    monkeypatch.undo()
    webgpu_compile.compile(net, tmp_path / "a/b/c/out")
    assert os.listdir(tmp_path / "a/b/c") == ["out"]


def test_an_error_cannot_drive_a_terminal() -> None:
    error = CompileError("node \x1b[31m", "is\nodd", "see a\u202eb")
    assert str(error) == r"node \x1b[31m: is\nodd; see a\u202eb."
    assert error.subject == r"node \x1b[31m"


def test_a_disk_that_really_fills(artifacts: Any, tmp_path: Path) -> None:
    """A file-size limit of 100 KiB stands in for the disk: the system refuses a write in mid-shard."""
    model = artifacts.model(of("tiny-llama", n_layers=1))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from webgpu_compile.compiler.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), "-o", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: output '{tmp_path / 'out'}': cannot be written: File too large;")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_an_interruption_between_the_two_renames(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when the old folder has gone and the new one is not there: the old one comes back."""
    out = tmp_path / "out"
    webgpu_compile.compile(net, out)
    before = contents(tmp_path)
    rename = os.rename
    calls = []

    def interrupted(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(artifact.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        webgpu_compile.compile(net, out)
    assert len(calls) == 3
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_packing(number: signal.Signals, code: int, artifacts: Any, tmp_path: Path) -> None:
    config = of("tiny-llama", n_layers=4, hidden_size=2048, intermediate_size=8192, n_heads=16, n_kv_heads=8)
    model = artifacts.model(config)  # 140 MB of weights: a second or two of packing
    out = tmp_path / "out"
    small = artifacts.compile(of("tiny-llama", n_layers=1))
    shutil.copytree(small, out)
    before = contents(tmp_path)
    child = subprocess.Popen(
        [*MODULE, str(model), "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*/weights/*")):
        assert child.poll() is None, child.stderr and child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == code, stderr
    assert stdout == ""
    # The empty line is for the ^C that a terminal shows.
    assert stderr == ("\ninterrupted; nothing was written.\n" if number == signal.SIGINT else "")
    assert contents(tmp_path) == before


def test_a_dump_that_cannot_be_written(net: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("a file")
    sentence = refused(net, "--check", "--dump", tmp_path / "letter")
    assert "--dump" in sentence
    assert "cannot be written" in sentence


def test_a_bug_of_ours_is_called_one(
    net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("webgpu_compile.compiler.pipeline.plan", broken)
    with pytest.raises(SystemExit) as ended:
        main([str(net), "--check"])
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert err == (
        "error: webgpu-compile has a bug (KeyError: 'lost'); "
        "report it with the model; webgpu_compile.compile() in Python shows the traceback.\n"
    )
