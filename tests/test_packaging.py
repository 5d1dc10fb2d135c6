"""What is installed is what is here: every package and data file is in the wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOMES = CONFIG["tool"]["setuptools"]["package-dir"]


def package_of(folder: Path) -> str:
    """The import name of a folder by the longest package-dir prefix that fits."""
    best = max(
        (
            (name, home)
            for name, home in HOMES.items()
            if folder == ROOT / home or ROOT / home in folder.parents
        ),
        key=lambda pair: len(pair[1]),
    )
    return ".".join([best[0], *folder.relative_to(ROOT / best[1]).parts])


def source_files() -> dict[str, Path]:
    """Files by their path in the wheel. models/demo is scripts and weights for the checkout only."""
    files = {}
    for home in set(HOMES.values()):
        for file in (ROOT / home).rglob("*"):
            inside = file.relative_to(ROOT).parts
            if file.suffix in {".py", ".j2", ".typed", ".css", ".js"} and not {
                "__pycache__",
                "demo",
                "node_modules",
            } & set(inside):
                files[package_of(file.parent).replace(".", "/") + "/" + file.name] = file
    for file in (ROOT / "runtime").glob("*.schema.json"):
        files[f"webgpu_compile/runtime/{file.name}"] = file
    return files


def test_every_source_file_is_in_the_wheel(tmp_path: Path) -> None:
    # From an sdist, as `pip install` from the registry would: built from a clean tree.
    for build in ("sdist", "wheel"):
        command = f"from setuptools.build_meta import build_{build} as b; print(b({str(tmp_path)!r}))"
        source = ROOT
        if build == "wheel":
            with __import__("tarfile").open(next(tmp_path.glob("*.tar.gz"))) as archive:
                archive.extractall(tmp_path / "sdist", filter="data")
            source = next((tmp_path / "sdist").iterdir())
        done = subprocess.run([sys.executable, "-c", command], cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    missing = sorted(set(source_files()) - names)
    assert not missing, f"not in the wheel: {missing}"


def test_the_top_level_has_only_what_the_layout_allows() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    folders = {"compiler", "templates", "runtime", "tests", "models", "docs"}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml"}
    assert {name for name in top if not name.startswith(".")} <= folders | files


def test_loading_an_artifact_needs_no_compiler_dependency() -> None:
    code = (
        "import sys, webgpu_compile; webgpu_compile.load;"
        "heavy = {'onnx', 'onnx_graphsurgeon', 'jinja2', 'networkx'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")
