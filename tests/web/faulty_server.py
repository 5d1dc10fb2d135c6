"""webgpu-serve's application on a free port, which counts what it sends and breaks off on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from webgpu_compile.runtime.serve_cli import make_application


@dataclass
class FaultyServer:
    """`sent` bytes of bodies by path; `cut_after` bytes of weights the connection breaks, once."""

    application: Any
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    cut_after: int | None = None
    url: str = ""

    def weight_bytes(self) -> int:
        return sum(n for path, n in self.sent.items() if path.startswith("/weights/"))

    def forget(self) -> None:
        self.sent.clear()
        self.ranges.clear()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        weights = path.startswith("/weights/")
        if weights:
            self.ranges += [value.decode() for name, value in scope["headers"] if name == b"range"]

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.pathsend":
                raise AssertionError("bodies must pass here to be counted")
            body = message.get("body", b"")
            if weights and body and self.cut_after is not None:
                if self.cut_after < len(body):
                    await send(
                        {"type": "http.response.body", "body": body[: self.cut_after], "more_body": True}
                    )
                    self.sent[path] = self.sent.get(path, 0) + self.cut_after
                    self.cut_after = None
                    raise ConnectionResetError("broken off, as asked for")
                self.cut_after -= len(body)
            self.sent[path] = self.sent.get(path, 0) + len(body)
            await send(message)

        try:
            await self.application(scope, receive, counted)
        except ConnectionResetError:
            return


@contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    application = FaultyServer(make_application(folder))
    config = uvicorn.Config(application, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    application.url = f"http://localhost:{port}/"
    try:
        yield application
    finally:
        server.should_exit = True
        thread.join(timeout=10)
