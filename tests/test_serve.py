"""webgpu-serve: which files it gives, with which headers, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from web.faulty_server import FaultyServer, faulty_server
from webgpu_compile.models import preset

COMMAND = [sys.executable, "-c", "from webgpu_compile.runtime.serve_cli import main; main()"]


@pytest.fixture(scope="module")
def folder(artifacts: Any) -> Path:
    return artifacts.compile(
        preset("tiny-llama"), max_length=128, prefill_chunks=(16,), variants=("portable",)
    )


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FaultyServer]:
    with faulty_server(folder) as server:
        yield server


def get(server: FaultyServer, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("localhost", int(server.url.rstrip("/").rpartition(":")[2]), timeout=20)
    connection.request(
        method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    response = connection.getresponse()
    return response, response.read()


def test_the_page_and_its_headers(server: FaultyServer, folder: Path) -> None:
    response, body = get(server, "/")
    assert (response.status, body) == (200, (folder / "index.html").read_bytes())
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert response.headers["cross-origin-embedder-policy"] == "require-corp"
    assert response.headers["x-content-type-options"] == "nosniff"
    response, _ = get(server, "/runtime.js")
    assert response.headers["content-type"].startswith("text/javascript")
    assert get(server, "/index.html", "HEAD")[1] == b""


def test_every_file_of_the_artifact_is_given(server: FaultyServer, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            response, body = get(server, f"/{file.relative_to(folder)}")
            assert (response.status, body) == (200, file.read_bytes()), file


def test_parts_of_weights(server: FaultyServer, folder: Path) -> None:
    (file,) = (folder / "weights").iterdir()
    data = file.read_bytes()
    response, body = get(server, f"/weights/{file.name}", range="bytes=100-299")
    assert (response.status, body) == (206, data[100:300])
    assert response.headers["content-range"] == f"bytes 100-299/{len(data)}"
    assert get(server, f"/weights/{file.name}", range=f"bytes={len(data)}-")[0].status == 416


def test_caching_by_hash(server: FaultyServer, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    file, sha256 = next(iter(manifest["modules"].items()))
    response, _ = get(server, f"/shaders/{file}")
    assert response.headers["etag"] == f'"{sha256}"'
    assert "immutable" in response.headers["cache-control"]
    for path in ("/index.html", f"/weights/{manifest['shards'][0]['file']}"):
        response, _ = get(server, path)
        assert response.headers["cache-control"] == "no-cache"
        again, body = get(server, path, if_none_match=response.headers["etag"])
        assert (again.status, body) == (304, b"")
        assert get(server, path, if_none_match='"other"')[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/..%2Fmanifest.json",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/weights",
        "/notes.txt",
    ],
)
def test_nothing_else_is_given(server: FaultyServer, folder: Path, path: str) -> None:
    (folder / "notes.txt").write_text("private")
    try:
        response, body = get(server, path)
    finally:
        (folder / "notes.txt").unlink()
    assert response.status == 404
    assert b"private" not in body
    assert b"root:" not in body


def test_the_command_serves_on_loopback_until_interrupted(folder: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(folder), "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(rf"{folder.name}: (http://localhost:\d+/) \(Ctrl-C ends it\)\n", line)
        assert match, line
        with urllib.request.urlopen(match[1], timeout=20) as response:
            assert response.status == 200
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0


def test_what_is_not_an_artifact(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path), "--no-open"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "has no manifest.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(server: FaultyServer, folder: Path) -> None:
    port = server.url.rstrip("/").rpartition(":")[2]
    done = subprocess.run(
        [*COMMAND, str(folder), "--port", port, "--no-open"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert f"error: 127.0.0.1:{port}: cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr
