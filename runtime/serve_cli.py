"""webgpu-serve: an artifact's page on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click

from .artifact import open_artifact
from .errors import RuntimeFailure
from .inspect_tables import printable
from .schema import Manifest

FOREVER = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".wgsl": "text/plain; charset=utf-8",
    ".safetensors": "application/octet-stream",
}
HEADERS = {
    # Cross-origin isolation: finer timers, and a page that nobody else can frame or read from.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option("--open/--no-open", "open_page", default=True, help="Open the page in the default browser.")
def main(folder: str, host: str, port: int, open_page: bool) -> None:
    """Serve the artifact in FOLDER as a page. Ctrl-C ends it."""
    try:
        sys.exit(serve(Path(folder), host, port, open_page))
    except RuntimeFailure as error:
        click.echo(f"error: {printable(str(error), keep=chr(10))}", err=True)
        sys.exit(2)


def serve(folder: Path, host: str, port: int, open_page: bool) -> int:
    """Serve until interrupted.

    Raises:
        RuntimeFailure: not an artifact with a page, starlette or uvicorn missing, or the address is taken.
    """
    application = make_application(folder)
    import uvicorn

    try:
        listener = _listen(host, port)
    except OSError as error:
        raise RuntimeFailure(
            f"{host}:{port}", f"cannot be listened on ({error.strerror})", "give another --host or --port"
        ) from None
    name = host if host not in ("127.0.0.1", "::1") else "localhost"
    address = f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"
    click.echo(f"{printable(folder.name or str(folder))}: {address} (Ctrl-C ends it)")
    if name != "localhost":
        click.echo("Browsers give WebGPU to https and localhost only: put a proxy with TLS before it.")
    if open_page:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off"))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def make_application(folder: Path) -> Any:
    """The ASGI application that serves the files which the manifest names, and no others.

    Shaders and weights are asked for by their hash elsewhere, or carry it in their name: shaders are cached
    for good; everything else is revalidated by its hash, which is its ETag.

    Raises:
        RuntimeFailure: `folder` is no artifact, or has no page; starlette is missing.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import FileResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise RuntimeFailure(
            "webgpu-serve", "needs starlette and uvicorn", "run `pip install webgpu-compile[serve]`"
        ) from None
    artifact = open_artifact(folder)
    if "index.html" not in artifact.manifest.files:
        raise RuntimeFailure(str(folder), "has no page", "compile the model again with webgpu-compile")
    tags = entity_tags(artifact.manifest)

    async def answer(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        path = artifact.folder / name
        if name not in tags or not path.is_file():
            return Response("not a file of this artifact\n", 404, media_type="text/plain")
        cache = FOREVER if name.startswith("shaders/") else REVALIDATE
        headers = HEADERS | {"cache-control": cache}
        if tags[name]:
            headers["etag"] = f'"{tags[name]}"'
            if headers["etag"] in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers, media_type=TYPES.get(path.suffix))

    return Starlette(routes=[Route("/{name:path}", answer, methods=["GET", "HEAD"])])


def entity_tags(manifest: Manifest) -> dict[str, str]:
    """The hash of every file, by its path; empty for the manifest, whose own the server makes up."""
    tags = {"manifest.json": ""} | dict(manifest.files)
    tags |= {f"shaders/{file}": sha256 for file, sha256 in manifest.modules.items()}
    for shard in manifest.shards:
        tags[f"weights/{shard.file}"] = hashlib.sha256("".join(shard.blocks).encode()).hexdigest()
    return tags


if __name__ == "__main__":
    main()
