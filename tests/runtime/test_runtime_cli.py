"""webgpu-run on an artifact written by hand, whose tokens can be computed in one's head."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tokenizer_cases import byte_tokenizer
from toy_artifact import build_decoder, edit_manifest, greedy
from webgpu_compile.runtime.run_cli import main

VOCAB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_decoder(tmp_path_factory.mktemp("toy") / "out", vocab_size=VOCAB, capacity=100)
    data = byte_tokenizer().to_str().encode()
    (folder / "tokenizer.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda m: m.update(files={"tokenizer.json": digest}))
    return folder


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def test_tokens(folder):
    done = run(folder, "--tokens", "1, 2,3", "-n", 20, "--tokens-per-submit", 3)
    assert done.stdout == ",".join(map(str, greedy([1, 2, 3], 20, VOCAB))) + "\n"
    assert (done.stderr, done.exit_code) == ("", 0)


def test_text(folder):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("Grüße").ids
    done = run(folder, "--prompt", "Grüße", "-n", 30)
    assert done.exit_code == 0
    assert done.stdout == tokenizer.decode(greedy(ids, 30, VOCAB)) + "\n"


def test_stats(folder):
    done = run(folder, "--tokens", "1,2", "-n", 20, "--stats", "--variant", "portable")
    assert "variant portable: asked for" in done.stderr
    for part in ("load ", "first token ", "(2 tokens)", "generation ", "(20 tokens)"):
        assert part in done.stderr


def test_capacity_is_a_warning_without_a_traceback(folder):
    done = run(folder, "--tokens", "1,2")
    assert done.stdout.count(",") == 98
    assert done.stderr == (
        "warning: the KV cache is full at 100 positions: generation ended; "
        "call reset() or compile with a larger --max-length\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the prompt: is empty"),
        (["--tokens", "1", "--prompt", "x"], "--prompt and --tokens: are both prompts; give one of them."),
        (["--prompt", "x", "--prompt-file", "-"], "--prompt and --prompt-file: are both prompts"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: cannot be read (No such file or directory)"),
        (
            ["--prompt", "x" * 101],
            "the KV cache: holds 100 positions, and the prompt has 101 tokens; shorten",
        ),
        (["--prompt", "x", "--stop", ""], "stop: is ''; give text of at least one character."),
        (["--prompt", "x", "--chat"], "--chat: needs a chat template, which this model does not have"),
        (
            ["--prompt", "x", "--system", "y"],
            "--system: needs a chat template, which this model does not have",
        ),
        (["--prompt", "x", "--window", "9"], "--window: is for --perplexity; leave it out."),
        (["--prompt", "x", "--top-k", "5"], "cannot sample with this artifact"),
        (["--perplexity", "x", "--prompt", "x"], "--prompt: is not for --perplexity"),
        (
            ["--prompt", "x", "--top-p", "2"],
            "--top-p: 2.0 is not in the range 0<x<=1; see webgpu-run --help.",
        ),
        (["--prompt", "x", "--top-p", "0"], "--top-p: 0.0 is not in the range 0<x<=1"),
        (["--prompt", "x", "--min-p", "-1"], "--min-p: -1.0 is not in the range 0<=x<=1"),
        (["--prompt", "x", "--temperature", "nan"], "--temperature: nan is not a finite number"),
        (["--prompt", "x", "--temperature", "hot"], "--temperature: 'hot' is not a valid number"),
        (["--prompt", "x", "--repetition-penalty", "0"], "--repetition-penalty: 0.0 is not in the range x>0"),
        (["--prompt", "x", "--seed", "-1"], "--seed: -1 is not in the range"),
        (["--prompt", "x", "--top-k", "some"], "--top-k: 'some' is not a valid whole number"),
        (["--tokens", "1", "--stop", "x"], "--stop: is about text"),
        (["--temprature", "1"], "--temprature: there is no such option; did you mean --temperature"),
        (["--tokens", "1,x"], "--tokens: is '1,x'; give token ids as 1,2,3."),
        (["--tokens", ""], "the prompt: is empty"),
        (["--tokens", "300"], "outside the vocabulary of 300"),
        (["--tokens", "1", "--variant", "fast"], "choose from portable"),
    ],
)
def test_bad_options(folder, options, message):
    done = run(folder, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_prompt_from_standard_input_and_from_a_file(folder, tmp_path):
    expected = byte_tokenizer().decode(greedy(byte_tokenizer().encode("Grüße\n").ids, 9, VOCAB)) + "\n"
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "Grüße\n\n".encode())  # a byte order mark, and one line feed more
    assert run(folder, "-n", 9, stdin="Grüße\n\n".encode()).stdout == expected
    assert run(folder, "-n", 9, "--prompt-file", "-", stdin="Grüße\n\n".encode()).stdout == expected
    assert run(folder, "-n", 9, "--prompt-file", file).stdout == expected


def test_standard_input_that_is_not_utf8(folder):
    done = run(folder, stdin=b"caf\xe9")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: standard input: is not UTF-8 text: byte 3 is 0xe9; convert it, for example with iconv.\n"
    )


@pytest.mark.parametrize("per_submit", [1, 8])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_text_ends_exactly_before_a_stop_string_across_tokens(folder, n, per_submit):
    """Every character is a token of its own here, or several."""
    whole = run(folder, "--prompt", "hello", "-n", 60).stdout[:-1]
    place = len(whole) // 3
    stop = whole[place : place + n]
    done = run(
        folder, "--prompt", "hello", "-n", 60, "--stop", stop, "--stop", "never",
        "--tokens-per-submit", per_submit,
    )  # fmt: skip
    assert done.stdout == whole[: whole.index(stop)] + "\n"


def test_the_beginning_of_a_stop_string_at_the_end_is_text(folder):
    whole = run(folder, "--prompt", "hello", "-n", 60).stdout[:-1]
    done = run(folder, "--prompt", "hello", "-n", 60, "--stop", whole[-2:] + "never")
    assert done.stdout == whole + "\n"


def test_json(folder):
    result = json.loads(run(folder, "--prompt", "hello", "-n", 20, "--json").stdout)
    text = byte_tokenizer().decode(greedy(byte_tokenizer().encode("hello").ids, 20, VOCAB))
    assert result["object"] == "text_completion"
    assert result["choices"] == [{"index": 0, "text": text, "finish_reason": "length"}]
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert result["timings"]["predicted_n"] == 20
    full = json.loads(run(folder, "--tokens", "1,2", "--json").stdout)
    assert full["choices"] == [{"index": 0, "tokens": greedy([1, 2], 99, VOCAB), "finish_reason": "length"}]


def test_perplexity(folder, tmp_path):
    """How it is called and what it counts; tests/test_perplexity.py compares the figure."""
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh" * 30)
    score = json.loads(run(folder, "--perplexity", file, "--window", 64, "--json").stdout)
    assert (score["n_tokens"], score["n_bytes"]) == (240 - 4, 240 - 4)
    assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))
    line = run(folder, "--perplexity", file, "--window", 64).stdout
    assert line.startswith(f"loss {score['loss']:.4f}  perplexity ")
    file.write_text("a")
    assert "the text: has 1 tokens" in run(folder, "--perplexity", file).stderr
    assert "give 2 to 100, the KV cache's size" in run(folder, "--perplexity", file, "--window", 101).stderr


def test_help_teaches():
    done = run("--help")
    assert done.exit_code == 0
    for part in ("Input:", "Generation:", "Measuring:", "GPU:", "Examples:", "greedy", "[0<x<=1]"):
        assert part in done.stdout


def test_nothing_is_said_when_the_reader_leaves(folder):
    command = f"{sys.executable} -m webgpu_compile.runtime.run_cli {folder} --tokens 1,2 | head -c 3"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert done.stdout == ",".join(map(str, greedy([1, 2], 3, VOCAB)))[:3]
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_text_without_a_tokenizer(tmp_path):
    done = run(build_decoder(tmp_path / "out"), "--prompt", "hello")
    assert done.exit_code == 2
    assert "needs a tokenizer.json, which this artifact does not have" in done.stderr


def test_text_without_the_library(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    done = run(folder, "--prompt", "hello")
    assert done.exit_code == 2
    assert "pip install webgpu-compile[text]" in done.stderr


def test_a_changed_tokenizer(folder):
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    done = run(folder, "--prompt", "hello")
    path.write_bytes(data)
    assert "tokenizer.json: was changed after it was compiled" in done.stderr


def test_ctrl_c_ends_the_generation(tmp_path):
    folder = build_decoder(tmp_path / "out", capacity=20_000)
    command = [sys.executable, "-m", "webgpu_compile.runtime.run_cli", str(folder), "--tokens", "1,2,3"]
    with subprocess.Popen([*command, "--stats"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = b""
        while first.count(b",") < 20:
            first += os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    text = (first + out).decode()
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert error.endswith(b"interrupted\n")
    assert b"generation" in error
    tokens = [int(token) for token in text.split(",")]
    assert text.endswith("\n")
    assert len(tokens) < 19_000
    assert tokens[:400] == greedy([1, 2, 3], 400, 53)[: len(tokens)]
