"""The runtime for browsers: its contract under Dawn's null backend in Node, and the page in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import webgpu_compile
from webgpu_compile.compiler.emit.web import PAGE_FILES, joined_runtime, write_web_files
from webgpu_compile.models import preset
from webgpu_compile.runtime.artifact import open_artifact
from webgpu_compile.runtime.chunks import choose_chunks
from webgpu_compile.runtime.programs import Dispatch
from webgpu_compile.runtime.sampling import checked_sampling

ROOT = Path(__file__).resolve().parents[1]
NPM = Path(os.environ.get("WEB_TEST_MODULES", ROOT / ".cache" / "web"))
"""Where `make web-deps` puts what tests/web/package.json names."""
MAX_CODE = {"f16-subgroups": 150_000, "portable": 150_000, "software": 110_000}
"""Bytes of all code of the demo model's page: its files, the runtime, and all WGSL of a variant."""
MAX_MANIFEST, MAX_RUNTIME, MAX_PAGE = 74_000, 40_000, 18_100
OPTIONS = {"max_length": 256, "prefill_chunks": (16, 64), "variants": ("portable",)}


@pytest.fixture(scope="module")
def tiny(artifacts: Any) -> Path:
    return artifacts.compile(preset("tiny-llama"), **OPTIONS)


def sampling_cases() -> list[tuple[dict[str, Any], dict[str, int]]]:
    """JavaScript's options and Python's words for them."""
    names = {"topK": "top_k", "topP": "top_p", "minP": "min_p", "repetitionPenalty": "repetition_penalty"}
    cases: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 2**40 + 7, "temperature": 0.7},
        {"seed": 1, "topK": 40, "topP": 0.9},
        {"seed": 1, "minP": 0.05, "temperature": 1e-30},
        {"seed": 1, "repetitionPenalty": 1.1},
        {"seed": 1, "temperature": 1e300, "topP": 1e-12, "repetitionPenalty": 1e-300},
        {"seed": 2**53 - 1, "temperature": 1.3, "topK": 2**40, "topP": 0.3000000001, "minP": 1},
    ]
    return [
        (case, checked_sampling(**{names.get(k, k): v for k, v in case.items()}).words()) for case in cases
    ]


def test_the_contract_holds_under_dawn_s_null_backend(tiny: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny / "manifest.json").read_bytes())
    expected = {
        "capacity": manifest["sequence"]["capacity"],
        "vocab_size": manifest["sequence"]["vocab_size"],
        "chunks": [
            (n, sizes, choose_chunks(n, sizes))
            for sizes in ([16, 64], [16, 128, 512])
            for n in (*range(1, 70), 129, 500, 1023, 1500)
        ],
        "sampling": sampling_cases(),
    }
    contract = {
        "folder": str(tiny),
        "modules": str(ROOT / "runtime" / "web"),
        "npm": str(NPM),
        "expected": expected,
    }
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    done = subprocess.run(
        ["node", "--test", str(ROOT / "tests" / "web" / "contract.mjs")],
        env={**os.environ, "CONTRACT": str(tmp_path / "contract.json")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_types_hold() -> None:
    """`tsc --checkJs` with strict: nothing to say about the modules."""
    compiler = NPM / "node_modules" / ".bin" / "tsc"
    done = subprocess.run(
        [compiler, "-p", str(ROOT / "runtime" / "web"), "--noEmit"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def test_the_joined_runtime_is_a_module_like_its_parts(tmp_path: Path) -> None:
    (tmp_path / "runtime.mjs").write_text(joined_runtime())
    code = (
        f"Promise.all([import('{tmp_path}/runtime.mjs'), import('{ROOT}/runtime/web/runtime.js')])"
        ".then(([a, b]) => console.log(JSON.stringify([Object.keys(a), Object.keys(b)])))"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    joined, parts = json.loads(done.stdout)
    assert joined == parts == ["DeviceLost", "RuntimeFailure", "Session", "clearCache", "load"]


def test_the_package_holds_the_modules_and_their_types(tmp_path: Path) -> None:
    source = shutil.copytree(ROOT / "runtime" / "web", tmp_path / "web")
    compiler = NPM / "node_modules" / ".bin" / "tsc"
    subprocess.run([compiler, "-p", str(source)], check=True, capture_output=True)
    done = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = {file["path"] for file in json.loads(done.stdout)[0]["files"]}
    assert {"package.json", "runtime.js", "session.js", "types.d.ts", "types/runtime.d.ts"} <= names
    assert "generate(ids?: " in (source / "types" / "session.d.ts").read_text()


def shader_files(out: Path) -> dict[str, set[str]]:
    """The WGSL files of all programs of each variant."""
    artifact = open_artifact(out)
    files = {}
    for variant in artifact.variants:
        steps = (step for program in variant.programs.values() for step in program.steps)
        used = {step.shader for step in steps if isinstance(step, Dispatch)}
        files[variant.name] = {f"shaders/{artifact.manifest.shaders[index].file}" for index in used}
    return files


def test_what_the_demo_s_page_downloads(tmp_path: Path) -> None:
    """All that it may fetch besides weights and tokenizer. Growth has to argue with these bounds."""
    out = tmp_path / "out"
    webgpu_compile.compile(ROOT / "models" / "demo" / "int4", out)
    shaders = shader_files(out)
    names = ["manifest.json", "runtime.js", *PAGE_FILES, *set().union(*shaders.values())]
    sizes = {name: (out / name).stat().st_size for name in names}
    breakdown = "\n".join(f"{nbytes:8} {name}" for name, nbytes in sorted(sizes.items(), key=lambda x: -x[1]))
    assert sizes["manifest.json"] < MAX_MANIFEST, breakdown
    assert sizes["runtime.js"] < MAX_RUNTIME, breakdown
    assert sum(sizes[name] for name in PAGE_FILES) < MAX_PAGE, breakdown
    for variant, files in shaders.items():
        code = sum(sizes[name] for name in files | {"runtime.js", *PAGE_FILES})
        assert code < MAX_CODE[variant], f"{variant}: {code}\n{breakdown}"


def test_a_page_has_what_its_kind_of_model_needs(tmp_path: Path) -> None:
    assert "graph.js" not in write_web_files(tmp_path, decoder=True)
    page = (tmp_path / "index.html").read_text()
    assert 'id="text"' in page
    assert 'id="graph"' not in page
    assert "graph.js" in write_web_files(tmp_path, decoder=False)
    page = (tmp_path / "index.html").read_text()
    assert 'id="text"' not in page
    assert 'id="graph"' in page
    assert "{%" not in page


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", None])
def test_the_template_library_comes_with_a_template(tmp_path: Path, place: str | None) -> None:
    config = {"chat_template": "{{ messages }}"} if place == "tokenizer_config.json" else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if place == "chat_template.jinja":
        (tmp_path / place).write_text("{{ messages }}")
    assert ("jinja.js" in write_web_files(tmp_path, decoder=True)) == bool(place)
