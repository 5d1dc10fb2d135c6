"""webgpu-inspect, as text: what a user reads."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from toy_artifact import build_decoder, build_graph, edit_details, edit_manifest
from webgpu_compile.runtime import inspect_cli
from webgpu_compile.runtime.inspect_tables import human


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return build_graph(tmp_path_factory.mktemp("graph") / "out")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    second = {"name": "fast", "features": ["subgroups"], "limits": {"max-buffer-size": 1 << 30}}
    first = {"name": "portable", "features": [], "limits": {}}
    return build_decoder(tmp_path_factory.mktemp("toy") / "out", variants=[second, first], indirect=True)


def inspect(*arguments) -> str:
    done = CliRunner().invoke(inspect_cli.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_overview(decoder):
    text = inspect(decoder)
    for part in (
        "toy (decoder, opset 0)",
        "Memcpy nodes  0 before, 0 after",
        "40 positions, vocabulary of 53",
        "input_ids: int64[batch_size, sequence_length]",
        "fast     │ subgroups │ max-buffer-size 1073741824",
        "portable │ none      │ none ",
        "│ cache                   │ state      │    640 B │",
        "│ decode     │    1 │          4 │",
    ):
        assert part in text


def test_program_names_weights_and_shows_markup_as_it_is(graph):
    text = inspect(graph, "--program", "run")
    assert "0 r  a " in text
    assert "1 r  b " in text
    assert "3 rw y " in text
    assert "/[bold]Add" in text
    assert "2×1×1 │ 804 B │  400 B" in text
    assert "y → z" in text


def test_activations_are_named_by_their_lifetime(graph, tmp_path):
    folder = build_graph(tmp_path / "out")
    lives = [["hidden/[red]x", 2, 400, 0, 1]]
    edit_details(folder, lambda d: d["programs"]["run"].update(lifetimes=lives))
    text = inspect(folder, "--program", "run")
    assert "3 rw hidden/[red]x in y" in text
    assert "Lifetimes in run" in text
    assert "│ hidden/[red]x │ 400 B │  0..1 │" in text


def test_indirect_grid(decoder):
    assert "indirect: grid" in inspect(decoder, "--program", "decode")


@pytest.mark.parametrize(
    "option", [("--node", "/Mul"), ("--node", "*[[]bold]*"), ("--kernel", "axpb"), ("--kernel", "*.wgsl")]
)
def test_shaders_are_plain_when_piped(graph, option):
    text = inspect(graph, *option)
    assert "│ run     │ 0    │ axpb" in text
    assert (graph / "shaders" / "axpb.wgsl").read_text() in text
    assert "\x1b" not in text


def test_shaders_are_highlighted_on_a_terminal(graph, monkeypatch):
    out = io.StringIO()

    def terminal(**options):
        return Console(file=out, force_terminal=True, color_system="truecolor", width=120, **options)

    monkeypatch.setattr(inspect_cli, "Console", terminal)
    inspect_cli.inspect(str(graph), kernel="axpb")
    assert "\x1b[38;2;" in out.getvalue()
    assert "global_invocation_id" in out.getvalue()


def test_names_cannot_drive_the_terminal(graph, tmp_path):
    folder = build_graph(tmp_path / "out")
    edit_manifest(folder, lambda m: m["model"].update(name="evil\x1b]0;title\x07"))
    text = inspect(folder)
    assert "\x1b" not in text
    assert r"evil\x1b]0;title\x07" in text


def test_json(decoder):
    found = json.loads(inspect(decoder, "--json", "--program", "decode", "--variant", "portable"))
    assert found["variant"] == "portable"
    assert found["capacity"] == 40
    assert list(found["programs"]) == ["decode"]
    step = found["programs"]["decode"]["steps"][1]
    assert (step["kernel"], step["shader"], step["grid"]) == ("append", "append.wgsl", "indirect")
    assert step["bindings"][2]["tensor"] == "table"
    assert [binding["access"] for binding in step["bindings"]] == ["read", "read", "read", "read_write"]
    assert found["variants"][0]["memory"]["state"] == 640 + 164 + 48
    assert found["variants"][0]["programs"]["decode"]["dispatches"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--program", "decoed"],
            "error: program 'decoed': is not in this artifact; choose from decode, prefill_4",
        ),
        (["--variant", "x"], "error: variant 'x': is not in this artifact; choose from fast, portable."),
        (["--kernel", "app"], "error: --kernel app: matches nothing; try one of append."),
        (["--node", "/Mul"], "error: --node /Mul: matches nothing"),
    ],
)
def test_wrong_names(decoder, options, message):
    done = CliRunner().invoke(inspect_cli.main, [str(decoder), *options])
    assert done.exit_code == 2
    assert done.output.startswith(message)
    assert done.output.count("\n") == 1


def test_not_an_artifact(tmp_path):
    done = CliRunner().invoke(inspect_cli.main, [str(tmp_path)])
    assert done.exit_code == 2
    assert "has no manifest.json; give the folder that webgpu-compile wrote" in done.output


def test_human():
    assert [human(n) for n in (0, 1023, 1024, 1536, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 MiB",
        "3.00 GiB",
    ]
