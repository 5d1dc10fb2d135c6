"""Emitted WGSL: both compilers accept all of it, it says where it comes from, and golden files hold it still.

Golden files are one int4 and one fp16 decoder under golden/wgsl/ (shaders) and golden/manifest/ (the rest of
the artifact). `pytest tests/test_wgsl.py --bless` rewrites them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tint
import webgpu_compile
import wgpu
from conftest import Artifacts
from decoder_cases import FP16, GRAPH, SHAPES, long_rope, of, shape, spellings
from gpu import device
from webgpu_compile.compiler.emit.shaders import Shader, render_shaders
from webgpu_compile.compiler.emit.trim import trimmed
from webgpu_compile.compiler.emit.wgsl import folded, shortened
from webgpu_compile.compiler.options import CompileOptions
from webgpu_compile.compiler.pipeline import Result, run_pipeline
from webgpu_compile.compiler.progress import SilentObserver
from webgpu_compile.compiler.target import DEFAULT_TARGETS, SPEC_LIMITS, TARGETS
from webgpu_compile.models import DecoderConfig, preset, preset_names
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.details import read_details
from webgpu_compile.runtime.programs import Dispatch
from webgpu_compile.runtime.shaders import check_source, for_naga

GOLDEN = Path(__file__).parent / "golden"
HOW_TO_BLESS = "if the change is meant, run `pytest tests/test_wgsl.py --bless` and read the diff"

MODELS: dict[str, tuple[DecoderConfig, str]] = {
    **spellings(),
    **{name: (config, "auto") for name, config in SHAPES.items()},
    **{f"{name}-float": (config, "float") for name, config in SHAPES.items()},
    "long-rope": (long_rope(), "auto"),
    "long-rope-graph": (long_rope(mask=GRAPH, **FP16), "auto"),
}
IN_CI = ("llama-3.2-1b", "llama-3.1-8b", "phi-4-mini", "qwen2.5-7b")
FULL_SIZE = [
    pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow)
    for name in preset_names()
    if not name.startswith("tiny-")
]


def emitted(artifacts: Artifacts, config: DecoderConfig, **options: Any) -> Result:
    """Everything up to the shaders, for all variants, without weights."""
    defaults = {"max_length": 64, "prefill_chunks": (16,), "variants": tuple(TARGETS), "check": True}
    settings = CompileOptions(**(defaults | options))
    result = run_pipeline(artifacts.model(config, weights=False), None, settings, SilentObserver())
    assert result.plan is not None
    return replace(result, shaders=render_shaders(result.plan.variants))


def naga_errors(
    source: str, entry: str | None = None, constants: Mapping[str, float] | None = None
) -> str | None:
    """What naga has against a module, and against the pipeline of one of its entry points."""
    try:
        module = device().create_shader_module(code=for_naga(source))
        if entry is not None:
            stage = {"module": module, "entry_point": entry, "constants": constants or {}}
            device().create_compute_pipeline(layout="auto", compute=stage)
    except wgpu.GPUError as error:
        return str(error)
    return None


_accepted: set[tuple[object, ...]] = set()


def assert_valid(shaders: tuple[Shader, ...], variants: Mapping[str, Any]) -> None:
    """Both compilers accept each shader with its constants, and no more features than it names."""
    assert shaders
    for shader in shaders:
        file, text = shader.file.name, shader.file.text
        body = "\n".join(line for line in text.splitlines() if not line.startswith("//"))
        if (body, shader.entry, shader.constants) in _accepted:
            continue
        check_source(file, text)
        assert naga_errors(text, shader.entry, dict(shader.constants)) is None, file
        pipelines = [(shader.entry, dict(shader.constants))]
        assert tint.check(text, shader.features, pipelines) == [], file
        assert_enables(shader)
        _accepted.add((body, shader.entry, shader.constants))
    assert set(variants) == set(TARGETS)


def assert_enables(shader: Shader) -> None:
    """`enable` directives stand for the features named, first, and only for what is used."""
    file = shader.file.name
    code = re.sub(r"//[^\n]*", "", shader.file.text)
    enables = re.findall(r"^enable (\w+);", code, re.MULTILINE)
    names = {"f16": "shader-f16", "subgroups": "subgroups"}
    assert sorted(names[name] for name in enables) == sorted(shader.features), file
    assert code.count("enable ") == len(enables)
    assert code.lstrip().startswith("enable ") or not enables
    uses = {"shader-f16": r"\bf16\b(?!;)|\bvec[234]h\b", "subgroups": r"\bsubgroup\w+"}
    body = re.sub(r"^enable \w+;", "", code, flags=re.MULTILINE)
    for feature, pattern in uses.items():
        assert bool(re.search(pattern, body)) == (feature in shader.features), f"{file}: {feature}"


def assert_variants(result: Result) -> None:
    """The shaders of a variant need no feature that it does not name; `portable` names none."""
    assert result.plan is not None
    assert result.shaders is not None
    for (variant, *_), index in result.shaders.index.items():
        assert set(result.shaders.shaders[index].features) <= set(TARGETS[variant].features)
    assert TARGETS["portable"].features == ()


@pytest.mark.parametrize("name", MODELS)
def test_both_compilers_accept_every_shader(artifacts: Artifacts, name: str) -> None:
    config, activations = MODELS[name]
    for options in ({}, {"sequence_length": "host", "attention_dispatch": "indirect"}):
        result = emitted(artifacts, config, activations=activations, **options)
        assert result.shaders is not None
        assert_valid(result.shaders.shaders, result.programs or {})
        assert_variants(result)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models(artifacts: Artifacts, name: str) -> None:
    """Large vocabularies and contexts: tensors over a binding's 128 MiB, grids over 65,535 workgroups."""
    config = replace(preset(name), max_positions=16384, mask=GRAPH)
    for activations in ("auto", "float"):
        options = {"max_length": 8192, "prefill_chunks": (16, 128, 512), "activations": activations}
        result = emitted(artifacts, config, **options)
        assert result.shaders is not None
        assert result.plan is not None
        assert_valid(result.shaders.shaders, result.programs or {})
        assert_variants(result)
        for programs in result.plan.variants.values():
            for planned in programs:
                for kernel in planned.program.kernels:
                    grid = kernel.grid if isinstance(kernel.grid, tuple) else kernel.worst_grid
                    assert max(grid or (0,)) <= SPEC_LIMITS["max-compute-workgroups-per-dimension"]
                    for binding in kernel.bindings:
                        nbytes = planned.places[binding.tensor].nbytes
                        assert nbytes <= SPEC_LIMITS["max-storage-buffer-binding-size"], binding.tensor


# ------------------------------------------------------------------ the manifest beside the shaders


def nodes_of(out: Path) -> set[str]:
    """The ONNX nodes that the steps of `decode` implement."""
    artifact = open_artifact(out)
    details = read_details(artifact).of(artifact.variants[0], "decode")
    return {name for step in details.steps for name in step.nodes}


@pytest.mark.parametrize("name", ["llama-int4-int8-graph", "qwen25-fp16-graph", "pruned"])
def test_manifest_agrees_with_the_files(artifacts: Artifacts, name: str) -> None:
    """It validates against the schema; features, access and workgroups are those of the WGSL text."""
    config, activations = MODELS[name]
    out = artifacts.compile(
        config,
        activations=activations,
        max_length=64,
        prefill_chunks=(16,),
        variants=tuple(TARGETS),
        attention_dispatch="indirect",
    )
    artifact = open_artifact(out)
    manifest = artifact.manifest
    written = {path.name for path in (out / "shaders").iterdir()}
    assert written == set(manifest.modules) == {shader.file for shader in manifest.shaders}
    for shader in manifest.shaders:
        text = (out / "shaders" / shader.file).read_text("utf-8")
        assert ("enable f16;" in text) == ("shader-f16" in shader.features)
        assert ("enable subgroups;" in text) == ("subgroups" in shader.features)
        declared = re.findall(r"@group\(0\) @binding\((\d+)\) var<storage, (\w+)>", text)
        letters = {"r": "read", "w": "read_write"}
        assert {(str(i), letters[access]) for i, access in enumerate(shader.access)} <= set(declared)
        size = re.search(rf"@workgroup_size\(([^)]*)\)\s*fn {shader.entry}\b", text)
        assert size is not None
        sizes = [int(number) for number in size[1].split(",")]
        assert [*sizes, 1, 1][:3] == shader.workgroup
    own = {variant.name for variant in manifest.variants if variant.programs}
    assert own <= {"software"}  # the others share theirs
    assert [variant.name for variant in artifact.variants] == list(TARGETS)
    for variant in artifact.variants:
        assert tuple(variant.features) == TARGETS[variant.name].features
        for limit, value in variant.limits.items():
            assert value <= SPEC_LIMITS[limit], f"{variant.name} {limit}"
        for program in variant.programs.values():
            for step in program.steps:
                if isinstance(step, Dispatch):
                    shader = manifest.shaders[step.shader]
                    assert set(shader.features) <= set(variant.features)
                    assert len(step.bindings) == len(shader.access)


def unfolded(comment: str) -> list[str]:
    """layers.{0..2}/down_proj  =>  layers.0/down_proj, layers.1/down_proj, layers.2/down_proj"""
    found = re.fullmatch(r"(.*)\{([\d.,]+)\}(.*)", comment)
    if found is None:
        return [comment]
    ends = ([*map(int, part.split("..")), int(part.split("..")[-1])][:2] for part in found[2].split(","))
    return [f"{found[1]}{n}{found[3]}" for first, last in ends for n in range(first, last + 1)]


def in_comment(line: str) -> Iterator[str]:
    """layers.{0..1}: o_proj, down_proj  =>  layers.0/o_proj, layers.1/o_proj, layers.0/down_proj, ..."""
    layer, _, names = line.rpartition("}: ")
    for name in names.split(", "):
        yield from unfolded(f"{layer}}}/{name}" if layer else name)


def test_names_that_differ_in_a_number_are_one_comment() -> None:
    names = [
        "a.0/x4",
        "a.0/y",
        "a.1/x4",
        "a.2/x4",
        "a.5/x4",
        "a.5/y",
        "b",
        "a.007/y",
        "c.3",
        "c.4/z9",
        "c.4/z10",
    ]
    lines = folded(names)
    assert lines == ["a.{0..2,5}/x4", "a.{0,5}/y", "b", "a.007/y", "c.3", "c.4/z{9..10}"]
    assert sorted(name for line in lines for name in unfolded(line)) == sorted(names)
    assert folded([]) == []


def test_types_and_numbers_are_written_short() -> None:
    code = """let a = vec4<u32>(4u) + x * 2u - (y << 3u) / array<vec2<f16>, 2>()[1u].x;
if (4u * i >= n && 1u == 2u * (i % 8u)) { i += 1u; }
let b = 1u << i | min(i, 3u) | 0x0fu; var c: mat2x4<f32>; const D = 5u;"""
    want = """let a = vec4u(4) + x * 2 - (y << 3) / array<vec2h, 2>()[1].x;
if (4 * i >= n && 1u == 2 * (i % 8)) { i += 1; }
let b = 1u << i | min(i, 3u) | 0x0fu; var c: mat2x4f; const D = 5u;"""
    assert shortened(code) == want


def test_what_main_does_not_reach_is_left_out() -> None:
    wgsl = """// What it is.

struct Sequence;

struct Unused {
  x: f32,
}

// Two numbers.
const A = 1u;
const B = 2u;  // of main

fn deep() -> u32 { return B; }

// Says something.
fn unused(a: u32) -> u32 {

  return A + deep();
}
@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

var<workgroup> gone: f32;

@compute @workgroup_size(1)
fn main() {
  y[0] = sequence.length + deep();  // A is not unused
}
"""
    words = "struct Sequence { past_length: u32, length: u32 }\n"
    kept = wgsl.replace("struct Sequence;\n", words)
    kept = kept.replace(wgsl[wgsl.index("struct Unused") : wgsl.index("// Two")], "")
    kept = kept.replace("const A = 1u;\n", "").replace("var<workgroup> gone: f32;\n\n", "")
    kept = kept.replace(wgsl[wgsl.index("// Says") : wgsl.index("@group(0) @binding(0)")], "")
    assert trimmed(wgsl) == kept


@pytest.mark.parametrize("changes", [{}, FP16])
def test_every_node_is_named_somewhere(artifacts: Artifacts, changes: dict[str, Any]) -> None:
    """Comments lead from WGSL to the model: each node that computes is named in a shader and in a step."""
    config = of("tiny-qwen25", n_layers=1, **changes)
    out = artifacts.compile(config, max_length=32, prefill_chunks=(16,))
    model = onnx.load(artifacts.model(config), load_external_data=False)
    names = {
        node.name
        for node in model.graph.node
        if node.op_type not in ("Constant", "Reshape") and "attn_mask_subgraph" not in node.name
    }
    text = "".join(path.read_text("utf-8") for path in (out / "shaders").iterdir())
    lines = re.sub(r"\n//     ", " ", text).splitlines()
    comments = {name for line in lines if line.startswith("//   ") for name in in_comment(line[5:])}
    assert names <= comments
    assert names <= nodes_of(out)


# ------------------------------------------------------------------ names that a model may have

HOSTILE = (
    "new\nline",
    "carriage\rreturn",
    "vertical\vtab and form\ffeed",
    "next\u0085line, line\u2028separator, paragraph\u2029separator",
    "*/ } @compute fn evil() {} /*",
    "/* open",
    "// enable f16;\nenable f16;",
    "\"quotes' and `backticks` and \\ backslash",
    "<script>alert(1)</script><!--",
    "{{ 7 * 7 }}{% raw %}",
    "../../../etc/passwd",
    "right-to-left \u202e override, nothing \u200b wide, \ufeff mark, emoji \U0001f600",
    "control \x01\x1b[31m red",
    "long " + "x" * 5000,
)


def hostile_model(source: Path, folder: Path) -> Path:
    """The model with every node and inner value renamed: a hostile text in front of a number.

    The first weights get names that safetensors and our shards keep for themselves.
    """
    model = onnx.load(source, load_external_data=False)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    weights = (tensor.name for tensor in model.graph.initializer)
    names = dict(zip(weights, ("__metadata__", ".padding.0", ".padding.7"), strict=False))

    def renamed(name: str) -> str:
        if name not in kept and name not in names:
            names[name] = f"{HOSTILE[len(names) % len(HOSTILE)]}{len(names)}"
        return names.get(name, name)

    for number, node in enumerate(model.graph.node):
        node.name = f"{HOSTILE[number % len(HOSTILE)]}{number}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for value in (*model.graph.initializer, *model.graph.value_info):
        value.name = renamed(value.name)
    folder.mkdir()
    for path in source.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(of("tiny-qwen25"), id="int4"),
        pytest.param(of("tiny-qwen25", **FP16), id="fp16"),
        pytest.param(long_rope(mask=GRAPH), id="long-rope"),
    ],
)
def test_hostile_names(artifacts: Artifacts, tmp_path: Path, config: DecoderConfig) -> None:
    """Names are data: they change comments and the manifest, never code, file names or logits."""
    options: dict[str, Any] = {"max_length": 48, "prefill_chunks": (16,)}
    plain = artifacts.compile(config, **options)
    model = hostile_model(artifacts.model(config), tmp_path / "model")
    out = tmp_path / "out"
    webgpu_compile.compile(model, out, variants=("f16-subgroups", "portable"), **options)

    def code(folder: Path) -> dict[str, list[str]]:
        texts = {path.name: path.read_bytes().decode() for path in (folder / "shaders").iterdir()}
        # str.splitlines knows all the characters that end a line comment in WGSL, and some more
        return {
            name: [x for x in text.splitlines() if not x.startswith("//")] for name, text in texts.items()
        }

    assert code(out) == code(plain)
    for path in (out / "shaders").iterdir():
        text = path.read_text("utf-8")
        assert re.fullmatch(r"[a-z0-9_]+\.[0-9a-f]{10}\.wgsl", path.name)
        assert "\0" not in text
        assert naga_errors(text) is None
        assert tint.check(text) == []
    true_names = {node.name for node in onnx.load(model, load_external_data=False).graph.node}
    given = nodes_of(out)
    assert {name for name in given if len(name) < 1000} <= true_names
    assert len(given) > 10
    ids = np.arange(20)[None]
    with webgpu_compile.load(plain) as one, webgpu_compile.load(out) as other:
        assert np.array_equal(one.run({"input_ids": ids})["logits"], other.run({"input_ids": ids})["logits"])


# ------------------------------------------------------------------ golden files

TINY = shape(hidden_size=64, intermediate_size=96, head_size=32, vocab_size=271, max_positions=64)
GOLDEN_MODELS: dict[str, tuple[DecoderConfig, dict[str, Any]]] = {
    "int4": (replace(TINY, tied=True), {}),
    "fp16": (
        replace(TINY, mask=GRAPH, qkv_bias=True, prune_lm_head=True, **FP16),
        {"variants": ("portable",)},
    ),  # type: ignore[arg-type]
}


@cache
def golden_artifact(artifacts: Artifacts, name: str) -> Path:
    config, options = GOLDEN_MODELS[name]
    variants = {"variants": DEFAULT_TARGETS}
    return artifacts.compile(config, max_length=48, prefill_chunks=(16,), **{**variants, **options})


def unhashed(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File names without the hash of their content, `.2` and so on behind the second of a name."""
    names: dict[str, str] = {}
    for file in manifest["modules"]:
        kernel = file.split(".")[0]
        n = sum(name.split(".")[0] == kernel for name in names.values()) + 1
        names[file] = f"{kernel}.wgsl" if n == 1 else f"{kernel}.{n}.wgsl"
    return names


def schedule_text(manifest: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """Manifest and details, an entry a line; without hashes, versions, what depends on random numbers."""
    lines = []

    def put(label: str, entries: Any, indent: str = "") -> None:
        if not isinstance(entries, list):
            lines.append(f"{indent}{label}: {json.dumps(entries, ensure_ascii=False)}")
            return
        lines.append(f"{indent}{label}:")
        lines.extend(
            f"{indent}  {i} {json.dumps(entry, ensure_ascii=False)}" for i, entry in enumerate(entries)
        )

    names = unhashed(manifest)
    put("model", manifest["model"])
    put("sequence", manifest["sequence"])
    put("buffers", manifest["buffers"])
    put("shards", [{k: v for k, v in s.items() if k != "blocks"} for s in manifest["shards"]])
    put("shaders", [shader | {"file": names[shader["file"]]} for shader in manifest["shaders"]])
    put("kernels", manifest["kernels"])
    put("ranges", manifest["ranges"])
    for variant in manifest["variants"]:
        lines.append(f"variant {variant['name']}")
        for key in ("features", "limits", "launches"):
            put(key, variant[key], "  ")
    for name, program in manifest["programs"].items():
        lines.append(f"program {name}")
        for key, value in (program | {"details": details["programs"][name]["steps"]}).items():
            put(key, value, "  ")
        put("lifetimes", details["programs"][name]["lifetimes"], "  ")
    put("graph", details["graph"])
    put("weights", details["weights"])
    return "\n".join(lines) + "\n"


def golden_texts(artifacts: Artifacts, name: str) -> dict[str, str]:
    out = golden_artifact(artifacts, name)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    texts = {
        f"wgsl/{name}/{file}": (out / "shaders" / hashed).read_text("utf-8")
        for hashed, file in unhashed(manifest).items()
    }
    model = manifest["model"] | {"name": name}
    details = json.loads((out / "details.json").read_text("utf-8"))
    return texts | {f"manifest/{name}.txt": schedule_text(manifest | {"model": model}, details)}


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden(artifacts: Artifacts, bless: bool, name: str) -> None:
    actual = golden_texts(artifacts, name)
    found = [*(GOLDEN / "wgsl" / name).glob("*.wgsl"), GOLDEN / "manifest" / f"{name}.txt"]
    if bless:
        for path in found:
            path.unlink(missing_ok=True)
        for file, text in actual.items():
            (GOLDEN / file).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / file).write_text(text, encoding="utf-8")
        return
    golden = {path.relative_to(GOLDEN).as_posix(): path.read_text("utf-8") for path in found if path.exists()}
    difference = [
        line
        for file in sorted(actual.keys() | golden.keys())
        for line in difflib.unified_diff(
            golden.get(file, "").splitlines(),
            actual.get(file, "").splitlines(),
            f"tests/golden/{file}",
            "now",
            lineterm="",
            n=1,
        )
    ]
    assert not difference, "\n".join([HOW_TO_BLESS, *difference[:80]])


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden_shaders_are_read_by_people(name: str) -> None:
    """No trace of the template: no empty statement, no trailing space, no run of empty lines, no long one."""
    for path in sorted((GOLDEN / "wgsl" / name).glob("*.wgsl")):
        text = path.read_text("utf-8")
        assert "{{" not in text, path.name
        assert "{%" not in text, path.name
        assert "\n\n\n" not in text, path.name
        assert text.endswith("}\n"), path.name
        for number, line in enumerate(text.splitlines(), 1):
            assert line == line.rstrip(), f"{path.name}:{number} ends in spaces"
            assert not re.fullmatch(r"\s*;", line), f"{path.name}:{number} is empty"
            assert len(line) <= 160 or line.startswith("//"), f"{path.name}:{number} is {len(line)} wide"
