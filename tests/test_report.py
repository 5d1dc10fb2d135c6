"""report.html: its numbers against other sources, its text as text, and hostile model text as text only."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import webgpu_compile
from conftest import Artifacts
from decoder_cases import FP16, of
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from webgpu_compile.compiler.emit.report import render_report
from webgpu_compile.compiler.emit.report_cost import kernel_costs, total
from webgpu_compile.compiler.emit.report_figures import lifetime_chart, memory_bar, program_strips
from webgpu_compile.compiler.emit.report_format import count, plural, rate, share, size
from webgpu_compile.compiler.emit.report_programs import runs_of
from webgpu_compile.compiler.emit.report_repeats import LEAST_SAVED, repeats
from webgpu_compile.compiler.emit.report_wgsl import body, families, highlight
from webgpu_compile.compiler.emit.shaders import render_shaders
from webgpu_compile.compiler.options import CompileOptions
from webgpu_compile.compiler.pipeline import Result, run_pipeline
from webgpu_compile.compiler.program import Role
from webgpu_compile.compiler.progress import SilentObserver

CONFIG = of("tiny-llama", n_layers=5)
OPTIONS: dict[str, Any] = {"max_length": 96, "prefill_chunks": (16, 32)}
VOID = {"meta", "br", "rect", "path"}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "id",
        "href",
        "scope",
        "colspan",
        "rowspan",
    ),
    *(
        "tabindex",
        "role",
        "aria-label",
        "aria-labelledby",
        "viewbox",
        "transform",
        "x",
        "y",
        "width",
        "height",
    ),
    *("d", "fill", "text-anchor"),
}
"""What the templates use. No `on…`, no `style`, no `src`."""


class Page(HTMLParser):
    """The page as a browser's parser sees it: elements, attributes, text; fails on elements left open."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []
        self.text = "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links |= {value for name, value in attrs if name == "href" and value}
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(artifacts: Artifacts, config: Any, **options: Any) -> Result:
    """A compilation up to the shaders, of a model without weights."""
    settings = CompileOptions(check=True, **(OPTIONS | options))
    result = run_pipeline(artifacts.model(config, weights=False), None, settings, SilentObserver())
    assert result.plan is not None
    return replace(result, shaders=render_shaders(result.plan.variants))


def report_of(result: Result) -> str:
    assert result.plan is not None
    assert result.shaders is not None
    return render_report(result.device, result.plan, result.shaders, result.options, "webgpu-compile test")


def words(source: str) -> str:
    """The text of a page, elements apart, with every run of blanks as one."""
    return re.sub(r"\s+", " ", " ".join(Page(source).texts))


# ------------------------------------------------------------------ the file


def test_the_report_is_in_the_artifact_with_its_hash(artifacts: Artifacts, tmp_path: Path) -> None:
    options = {"variants": ("f16-subgroups", "portable"), **OPTIONS}
    out = artifacts.compile(CONFIG, **options)
    data = (out / "report.html").read_bytes()
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert files["report.html"] == hashlib.sha256(data).hexdigest()
    again = tmp_path / "another place"
    webgpu_compile.compile(artifacts.model(CONFIG), again, **options)
    assert (again / "report.html").read_bytes() == data
    for place in (out, artifacts.model(CONFIG), tmp_path, Path.cwd()):
        assert str(place.parent).encode() not in data
    assert re.search(rb"\b20\d\d-\d\d-\d\d\b", data) is None


def test_the_page_stands_by_itself(artifacts: Artifacts) -> None:
    source = report_of(checked(artifacts, CONFIG))
    page = Page(source)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert page.attributes <= ATTRIBUTES
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|url\(|@import", source)
    assert len(page.ids) == len(set(page.ids))
    assert {"#passes", "#program", "#memory", "#speed", "#steps", "#shaders"} <= page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in source
    assert "prefers-color-scheme: dark" in style[1]
    assert "@media print" in style[1]


def test_a_model_of_32_layers_stays_small(artifacts: Artifacts) -> None:
    """Layers are shown once, whatever their number: 32 take hardly more room than 5."""
    few, many = (
        report_of(checked(artifacts, of("tiny-llama", n_layers=n), max_length=2048)) for n in (5, 32)
    )
    assert len(many.encode()) < 1_000_000
    assert len(many) - len(few) < 60_000  # the strip of the whole program draws every kernel
    assert "one layer × 32" in words(many)
    assert "/model/layers.0/" in many
    assert "/model/layers.17/" not in many


# ------------------------------------------------------------------ its numbers


def test_head_and_passes(artifacts: Artifacts) -> None:
    result = checked(artifacts, CONFIG)
    text, counts, plan = words(report_of(result)), result.device.counts, result.plan
    assert plan is not None
    assert f"nodes {counts.nodes_before} → {counts.nodes_after}" in text
    assert f"Memcpy nodes {counts.memcpy_before} → 0" in text
    assert f"host nodes {counts.host_nodes_before} → 0" in text
    n_dispatches = len(plan.variants["portable"][0].program.kernels)
    assert f"dispatches per token {n_dispatches} " in text
    assert f"GPU memory {size(sum(buffer.nbytes for buffer in plan.buffers))} " in text
    assert "family llama" in text
    assert "layers 5" in text
    for name, (changes, _) in counts.by_pass().items():
        assert (f"Nothing to do for {name}" in text or f", {name}" in text) == (changes == 0), name
    assert "fuse_gated_mlp Mul(act(MatMulNBits(x, gate)), MatMulNBits(x, up)) => " in text
    assert "f16-subgroups shader-f16, subgroups none" in text
    assert "portable none none" in text


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_cost_of_a_token(artifacts: Artifacts, precision: str) -> None:
    """Every weight once, tables by row, the cache as deep as it is; two operations per weight."""
    config = of("tiny-llama-untied", **(FP16 if precision == "fp16" else {}))
    plan = checked(artifacts, config).plan
    assert plan is not None
    decode = plan.variants["portable"][0].program
    rows = {
        binding.tensor
        for kernel in decode.kernels
        for binding in kernel.bindings
        if kernel.name == "embed" or binding.variable == "rope"
    }
    weights = [tensor for tensor in decode.tensors.values() if tensor.role is Role.WEIGHT]
    streamed = sum(tensor.nbytes for tensor in weights if tensor.name not in rows)
    by_row = max(tensor.nbytes for tensor in weights if tensor.name in rows)
    position = 2 * config.n_layers * config.n_kv_heads * config.head_size * 2
    for depth in (1, 33, 96):
        cost = total(kernel_costs(decode, depth))
        assert streamed < cost.weights < streamed + by_row / 8
        assert cost.cache == (depth + 1) * position  # all read, one appended
    heads = config.n_heads + 2 * config.n_kv_heads
    layer = config.hidden_size * (heads * config.head_size + config.n_heads * config.head_size)
    layer += 3 * config.hidden_size * config.intermediate_size
    linear = 2 * (config.n_layers * layer + config.hidden_size * config.vocab_size)
    assert linear < total(kernel_costs(decode, 1)).operations < 1.1 * linear
    deep, deeper = (total(kernel_costs(decode, depth)).operations for depth in (32, 64))
    # A position more is a dot product and a weighted sum per head; reducing the splits costs 1/64 of that.
    position = 2 * 2 * config.n_layers * config.n_heads * config.head_size
    assert 32 * position <= deeper - deep <= 32.6 * position


def test_a_window_bounds_the_cache_that_is_read(artifacts: Artifacts) -> None:
    config = of("tiny-mistral")
    plan = checked(artifacts, config, max_length=256).plan
    assert plan is not None
    decode = plan.variants["portable"][0].program
    windows = {value for k in decode.kernels for name, value in k.constants if name == "window"} - {0}
    (window,) = windows
    assert isinstance(window, int)
    assert window < 256
    costs = [total(kernel_costs(decode, depth)).cache for depth in (window - 1, window, window + 1, 256)]
    assert costs[0] < costs[1] == costs[2] == costs[3]


def test_bounds_on_speed_are_bytes_over_bandwidth(artifacts: Artifacts) -> None:
    result = checked(artifacts, CONFIG)
    plan = result.plan
    assert plan is not None
    text = words(report_of(result))
    for planned in plan.variants["f16-subgroups"][:2]:
        program = planned.program
        cost = total(kernel_costs(program, 96))
        expected = [rate(program.rows * each * 1e9 / (cost.weights + cost.cache)) for each in (100, 400)]
        assert f" {program.name} 96 {' '.join(expected)} " in text


def test_pictures(artifacts: Artifacts) -> None:
    plan = checked(artifacts, CONFIG, prefill_chunks=(16,)).plan
    assert plan is not None
    decode = plan.variants["portable"][0]
    whole, before, layer, after = program_strips(decode, 96, n_layers=5)
    assert [strip.title for strip in (before, layer, after)] == [
        "before the layers",
        "one layer",
        "after the layers",
    ]
    assert whole.marks[0].label == "5 layers"
    n_kernels = len(before.cells) + 5 * len(layer.cells) + len(after.cells)
    assert n_kernels == len(decode.program.kernels)
    for strip in (before, layer, after):
        assert sum(cell.width for cell in strip.cells) == pytest.approx(1000)
    for strip in (whole, before, layer, after):
        assert all(a.x + a.width <= b.x + 1e-6 for a, b in pairwise(strip.cells))
    bar = memory_bar(plan, frozenset(b.name for b in plan.buffers if b.name.startswith("past_key_values")))
    assert sum(cell.width for cell in bar.cells) == pytest.approx(1000)
    cache = next(nbytes for kind, _, nbytes in bar.parts if kind == "cache")
    assert cache == 96 * 5 * 2 * CONFIG.n_kv_heads * CONFIG.head_size * 2


@pytest.mark.parametrize("n_layers", [1, 5, 24])
def test_lifetime_chart(artifacts: Artifacts, n_layers: int) -> None:
    """Bars of a buffer do not overlap; a cut chart says what it leaves out."""
    plan = checked(artifacts, of("tiny-llama", n_layers=n_layers)).plan
    assert plan is not None
    for planned in plan.variants["portable"]:
        chart = lifetime_chart(plan, planned)
        assert chart.cells
        for row in range(len(chart.rows)):
            bars = sorted((c.x, c.x + c.width) for c in chart.cells if c.row == row)
            assert all(end <= start for (_, end), (start, _) in pairwise(bars))
        assert all(c.x >= 0 and c.x + c.width <= 1000 for c in chart.cells)
        drawn = {tensor for tensor, *_ in chart.table}
        if chart.gap is None:
            assert drawn == {life.tensor for life in planned.lifetimes}
        else:
            first, last = map(int, chart.gap.label.split("–"))
            layers = max(runs_of(planned.program), key=lambda run: run.count)
            assert last + 1 - first == (layers.count - 3) * layers.period
            for life in planned.lifetimes:
                assert (life.tensor in drawn) == (life.first < first or life.last > last)
    assert (chart.gap is None) == (n_layers == 1)


# ------------------------------------------------------------------ its parts


def test_repeats_finds_layers() -> None:
    runs = repeats("a" + "bcd" * 4 + "bx")
    assert [(run.start, run.period, run.count) for run in runs] == [(0, 1, 1), (1, 3, 4), (13, 2, 1)]
    assert list(runs[1].members(2)) == [3, 6, 9, 12]
    assert repeats("") == ()
    assert [run.count for run in repeats("aab")] == [1], LEAST_SAVED


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repeats_covers_everything_once(signatures: list[int]) -> None:
    runs = repeats(signatures)
    assert [run.start for run in runs] + [len(signatures)] == [0, *(run.end for run in runs)]
    for run in runs:
        for i in range(run.period):
            assert len({signatures[at] for at in run.members(i)}) == 1


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_highlighting_changes_no_character(artifacts: Artifacts) -> None:
    shaders = checked(artifacts, CONFIG).shaders
    assert shaders is not None
    for file in shaders.files:
        code = body(file.text)
        assert "ONNX nodes" not in code
        assert set(code.split("\n")) <= set(file.text.split("\n"))
        assert plain(highlight(code)) == code
    coloured = highlight("// a < b\n@group(0) @binding(0) var<storage, read> x: array<f32>;\n/* a\n</pre> */")
    assert coloured.startswith("<i>// a &lt; b</i>\n<u>@group</u>(0)")
    assert "<b>var</b>" in coloured
    assert "<u>f32</u>" in coloured
    assert coloured.endswith(";\n<i>/* a</i>\n<i>&lt;/pre&gt; */</i>")


def test_differences_rebuild_their_shader(artifacts: Artifacts) -> None:
    """What a listing adds and removes, applied to the shader it names, gives the shader it is about."""
    result = checked(artifacts, CONFIG)
    assert result.plan is not None
    assert result.shaders is not None
    listings = [each for family in families(result.plan, result.shaders) for each in family.listings]
    assert {each.number for each in listings} == set(range(len(result.shaders.files)))
    compared = [each for each in listings if each.like is not None]
    assert len(compared) > len(listings) / 3
    for each in compared:
        assert each.like is not None
        old = body(result.shaders.files[each.like].text).split("\n")
        new = body(each.file.text).split("\n")
        assert patched(old, plain(each.code).split("\n")) == new
        assert 0 < each.n_changed < len(new)


def patched(old: Sequence[str], diff: Sequence[str]) -> list[str]:
    rest = list(old)
    done: list[str] = []
    for line in diff:
        if line.startswith("line "):
            while len(done) < int(line.removeprefix("line ")) - 1:
                done.append(rest.pop(0))
        elif line.startswith("- "):
            assert rest.pop(0) == line[2:]
        elif line.startswith("+ "):
            done.append(line[2:])
        else:
            done.append(rest.pop(0))
            assert done[-1] == line[2:]
    return done + rest


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.00 GiB",
    ]
    assert [count(n) for n in (7, 1500, 2.5e9, 1e12)] == ["7", "1.50 k", "2.50 G", "1.00 T"]
    assert [rate(n) for n in (1.234, 12.34, 1234.5, 123456)] == ["1.23", "12.3", "1,234", "123,460"]
    assert [share(1, 3), share(0, 3), share(1, 1e6)] == ["33.3 %", "0.0 %", "< 0.1 %"]
    assert [plural(1, "dispatch"), plural(1200, "dispatch"), plural(0, "node")] == [
        "1 dispatch",
        "1,200 dispatches",
        "0 nodes",
    ]


# ------------------------------------------------------------------ what models may contain

HOSTILE = (
    "<script>alert(1)</script><!--",
    "\"' onmouseover='alert(1)' x=\"",
    "]]></title></svg></pre></style><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "new\nline, line\u2028separator, bidi \u202e override, control \x01",
    "long " + "x" * 5000,
)


def test_hostile_names_are_text(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = tmp_path / "<b>model\"'&"
    shutil.copytree(artifacts.model(CONFIG).parent, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for i, node in enumerate(model.graph.node):
        node.name = HOSTILE[i % len(HOSTILE)] + str(i)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    names = {name for node in model.graph.node for name in (*node.input, *node.output)} - kept
    renamed = {name: HOSTILE[i % len(HOSTILE)] + str(i) for i, name in enumerate(sorted(names))}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*model.graph.initializer, *model.graph.value_info):
        value.name = renamed.get(value.name, value.name)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    result = webgpu_compile.compile(folder, tmp_path / "out", **OPTIONS)
    assert result.files is not None
    source = (tmp_path / "out/report.html").read_text("utf-8")
    plain_page, page = Page(report_of(checked(artifacts, CONFIG))), Page(source)
    assert page.tags == plain_page.tags
    assert page.attributes == plain_page.attributes
    assert "<b>model\"'&" in page.text
    assert "<script>alert(1)</script><!--" in page.text
    assert "{{ 7 * 7 }}{% raw %}&lt;b&gt;" in page.text
    assert r"new\nline, line\u2028separator, bidi \u202e override, control \x01" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", source)
    assert "x" * 1100 not in source


def test_a_graph_without_a_sequence(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("a<", "b")]
    nodes = [
        helper.make_node("Relu", ["a<"], ["t"], "first&"),
        helper.make_node("Neg", ["t"], ["b"], "second"),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "m.onnx",
    )
    webgpu_compile.compile(tmp_path / "m.onnx", tmp_path / "out")
    text = words((tmp_path / "out/report.html").read_text("utf-8"))
    assert "The program" in text
    assert "first&" in text
    assert "Runs per second" in text
    assert "token" not in text.lower()
    assert "KV cache" not in text


# ------------------------------------------------------------------ in a browser


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(artifacts: Artifacts, width: int, scheme: Any) -> None:
    """It fits its window, obeys its own content policy, follows the scheme, and links open what they name."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert chromium, "this test needs Chromium: apt-get install chromium (`make test` does)"
    from playwright.sync_api import sync_playwright

    page_file = artifacts.compile(CONFIG, **OPTIONS) / "report.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on(
            "request", lambda request: complaints.append(request.url) if page.url == request.url else None
        )
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red = page.evaluate("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (red > 128) == (scheme == "light")
        pre = page.locator("pre").last
        assert not pre.is_visible()
        page.evaluate("id => { location.hash = id }", pre.get_attribute("id"))
        pre.wait_for(state="visible", timeout=5000)
        complaints = [each for each in complaints if each != page_file.as_uri()]
        browser.close()
    assert complaints == []
