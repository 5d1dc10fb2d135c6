"""The documentation cannot rot: it is generated, executed, or compared with the code."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import pytest
import tint
import webgpu_compile
from gpu import ALL_TARGETS
from passes import conftest as passes
from webgpu_compile.compiler import cli as compile_cli
from webgpu_compile.compiler.docs_ops import page
from webgpu_compile.compiler.emit import wgsl
from webgpu_compile.compiler.lowering.builder import OPS
from webgpu_compile.compiler.passes.dump import to_model
from webgpu_compile.compiler.sequence import WORDS
from webgpu_compile.models import __main__ as models_cli
from webgpu_compile.runtime import details, inspect_cli, run_cli, schema, serve_cli
from webgpu_compile.runtime.programs import Dispatch, spell_out

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*.md")])
COMMANDS = {
    "webgpu-compile": compile_cli.command,
    "webgpu-run": run_cli.main,
    "webgpu-inspect": inspect_cli.main,
    "webgpu-serve": serve_cli.main,
    "python -m webgpu_compile.models": models_cli.main,
}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# -- links and commands


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitLab and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text("utf-8"))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    """`compiler/passes/front.py` in running text is a file of the repository."""
    for named in re.findall(
        r"`((?:compiler|runtime|templates|tests|models|docs)/[\w./*-]*)`",
        without_code(path.read_text("utf-8")),
    ):
        assert list(ROOT.glob(named.rstrip("/"))), f"{path.name} names {named}"


def shown_commands() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        text = path.read_text("utf-8")
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                yield path.name, line.partition("  #")[0].strip()
        yield from ((path.name, code) for code in re.findall(r"`([^`\n]+)`", without_code(text)))


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def test_commands_and_their_options_exist() -> None:
    checked = set()
    for page_name, line in shown_commands():
        for name, command in COMMANDS.items():
            if not (line + " ").startswith(name + " "):
                continue
            checked.add(name)
            for word in shlex.split(line):
                if word.startswith("-") and word not in ("-m",):
                    assert word in options_of(command), f"{page_name}: {line}"
        if line.startswith("make "):
            checked.add("make")
            target = line.split()[1]
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), f"{page_name}: {line}"
    assert checked == {*COMMANDS, "make"}


def test_installed_commands_are_those_of_the_readme() -> None:
    scripts = tomllib.loads(read("pyproject.toml"))["project"]["scripts"]
    for name in scripts:
        assert f"\n{name} " in read("README.md")


def test_the_readmes_python_uses_what_exists() -> None:
    (code,) = blocks("README.md", "python")
    compile(code, "README.md", "exec")
    for name in re.findall(r"webgpu_compile\.(\w+)", code):
        assert hasattr(webgpu_compile, name)
    for name in re.findall(r"session\.(\w+)", code):
        assert hasattr(webgpu_compile.Session, name)
    keywords = re.findall(r"session\.generate\(.*?(\w+)=", code)
    assert set(keywords) <= set(inspect.signature(webgpu_compile.Session.generate).parameters)


def test_options_in_running_text_exist() -> None:
    """`--prefill-chunks` in a sentence is an option of some command."""
    every = set().union(*map(options_of, COMMANDS.values())) | {"--bless"}
    for path in PAGES:
        for option in re.findall(r"`(--[\w-]+)", without_code(path.read_text("utf-8"))):
            assert option in every, f"{path.name}: {option}"


# -- docs/architecture.md


def test_the_sequence_words_are_those_of_the_code() -> None:
    section = read("docs/architecture.md").partition("## The sequence on the GPU")[2]
    table = section.partition("| word | meaning |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == WORDS


# -- docs/ops.md


def test_ops_page_is_fresh() -> None:
    assert read("docs/ops.md") == page(), "python -m webgpu_compile.compiler.docs_ops > docs/ops.md"


def test_every_lowering_says_what_it_does() -> None:
    for key, record in OPS.items():
        assert record.function.__doc__, key
        assert record.dtypes, key


# -- docs/manifest.md


def records() -> dict[str, type[msgspec.Struct]]:
    return {
        name: kind
        for name, kind in (vars(details) | vars(schema)).items()
        if inspect.isclass(kind) and issubclass(kind, schema.Record) and kind is not schema.Record
    }


def test_every_field_of_the_manifest_is_documented() -> None:
    sections = dict(
        re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", read("docs/manifest.md"), re.MULTILINE | re.DOTALL)
    )
    assert set(sections) == set(records())
    for name, kind in records().items():
        rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| .*\|$", sections[name], re.MULTILINE)
        expected = [(field.encode_name, default_of(field)) for field in msgspec.structs.fields(kind)]
        assert rows == expected, name


def default_of(field: Any) -> str:
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return json.dumps(value)


def test_the_manifest_page_has_the_version_and_a_true_example() -> None:
    assert f"`version` is {schema.VERSION}." in read("docs/manifest.md")
    (example,) = blocks("docs/manifest.md", "json")
    rest = {"format": "webgpu-compile", "version": schema.VERSION, "producer": "docs", "shards": []}
    rest |= {"buffers": [], "model": {"name": "x", "kind": "decoder", "inputs": [], "outputs": []}}
    document = json.dumps(rest | json.loads(example.replace("…", "0" * 64)))
    portable = spell_out(msgspec.json.decode(document, type=schema.Manifest))[1]
    (step,) = portable.programs["decode"].steps
    assert isinstance(step, Dispatch)
    assert (step.kernel, step.shader, step.grid) == ("rms_norm", 0, (1, 1, 1))
    assert [bound.buffer for bound in step.bindings] == [8, 0, 9]


# -- docs/adding-an-op.md


def titled(language: str, page: str) -> dict[str, str]:
    """Blocks by the file name in their first line."""
    found = {}
    for block in blocks(page, language):
        name = re.search(r"[\w/]+\.[\w.]+\w", block.partition("\n")[0])
        if name:
            found[name[0]] = block
    return found


def run_module(name: str, code: str) -> types.ModuleType:
    """A block as the module that it would be, relative imports and all."""
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
    return module


def test_adding_an_op(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    code = titled("python", "docs/adding-an-op.md")
    template = titled("wgsl", "docs/adding-an-op.md")["templates/lp_norm.wgsl.j2"]
    environment = wgsl._environment()
    added = jinja2.DictLoader({"lp_norm.wgsl.j2": template})
    monkeypatch.setattr(environment, "loader", jinja2.ChoiceLoader([added, environment.loader]))
    monkeypatch.setitem(OPS, ("", "LpNormalization"), None)  # undone when the test ends
    run_module("webgpu_compile.compiler.lowering.lp_norm", code["compiler/lowering/lp_norm.py"])
    tests = run_module("tests.kernels.test_lp_norm", code["tests/kernels/test_lp_norm.py"])
    function = tests.test_lp_normalization
    (mark,) = function.pytestmark
    assert len(mark.args[1]) >= 4
    for shape in mark.args[1]:
        function(shape, tmp_path_factory.mktemp("op"))


def test_the_ops_template_passes_tint(monkeypatch: pytest.MonkeyPatch) -> None:
    from webgpu_compile.compiler.program import Access, Binding, Kernel

    template = titled("wgsl", "docs/adding-an-op.md")["templates/lp_norm.wgsl.j2"]
    environment = wgsl._environment()
    monkeypatch.setattr(environment, "loader", jinja2.DictLoader({"lp_norm.wgsl.j2": template}))
    bindings = (Binding("x", "x"), Binding("y", "y", Access.READ_WRITE))
    kernel = Kernel("k", "lp_norm.wgsl.j2", (64, 1, 1), (3, 1, 1), bindings, (("rows", 3), ("size", 5)), ())
    for target in ALL_TARGETS:
        assert tint.check(wgsl.render(kernel, target)) == []


# -- docs/adding-a-pass.md


def test_adding_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = titled("python", "docs/adding-a-pass.md").values()
    (case_text,) = (
        text
        for name, text in titled("text", "docs/adding-a-pass.md").items()
        if name.endswith("transposes.txt")
    )
    module = run_module("webgpu_compile.compiler.passes.transposes", code)
    monkeypatch.setattr(passes, "MODULES", (*passes.MODULES, module))
    (tmp_path / "case.txt").write_text(case_text)
    case = passes.read_case(tmp_path / "case.txt")
    graph = passes.load_text(case.before, tmp_path)
    assert passes.apply(case, graph) == 1
    assert passes.graph_text(graph) == case.after
    before, after = passes.run_in_ort(passes.parse(case.before)), passes.run_in_ort(to_model(graph))
    np.testing.assert_array_equal(before, after)


def test_what_the_pass_page_names_exists() -> None:
    from webgpu_compile.compiler import graph
    from webgpu_compile.compiler.passes import front, function_bodies, functions

    for name in ("nodes", "producer", "small_value", "replace_reads", "sole_reader"):
        assert hasattr(graph, name)
    assert front.MODEL_FUSIONS
    assert front.PROGRAM_FUSIONS
    assert function_bodies.BODIES
    assert callable(functions.call)
