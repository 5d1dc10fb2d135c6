"""webgpu-run, and text in and out."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy_artifact import build_decoder, edit_manifest, greedy
from webgpu_compile.runtime.run_cli import main
from webgpu_compile.runtime.text import TextStream

VOCAB = 300


def byte_tokenizer() -> Tokenizer:
    """One token a byte: every character beyond ASCII takes several."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_tokenizer(text: str) -> Tokenizer:
    """SentencePiece's way: a space belongs to the word behind it, and the first one is dropped."""
    pieces = ["▁" + word for word in text.split(" ")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "?"]))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_decoder(tmp_path_factory.mktemp("toy") / "out", vocab_size=VOCAB, capacity=100)
    data = byte_tokenizer().to_str().encode()
    (folder / "tokenizer.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda m: m.update(files={"tokenizer.json": digest}))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


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
        ([], "the prompt: must be given once"),
        (["--tokens", "1", "--prompt", "x"], "the prompt: must be given once"),
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


@pytest.mark.parametrize("text", ["hello world", "naïve 🙂 日本語 ok", "é", "a\n\nb", "👩‍👩‍👧"])
def test_text_stream_gives_whole_characters(text):
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    parts = [stream.push(token) for token in tokenizer.encode(text).ids]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)
    assert stream.finish() == ""


def test_text_stream_keeps_spaces_between_words():
    text = "one two two three"
    tokenizer = word_tokenizer(text)
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode(text).ids] == ["one", " two", " two", " three"]


def test_text_stream_gives_an_unfinished_character_at_the_end():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("aé").ids
    assert [stream.push(token) for token in tokens[:2]] == ["a", ""]
    assert stream.finish() == "\ufffd"
