"""Side by side with onnxruntime-web in one Chromium on one software GPU: tokens/s, time to the first.

    python tests/web/compare_onnxruntime_web.py MODEL [--rounds 3] [--tokens 32] [--json]

MODEL is a folder with model.onnx and genai_config.json, with f32 caches (SwiftShader has no f16). The two
take turns, each time in a browser of its own, so that nothing is cached. Both pages contain a runtime and
nothing else; the clock starts with the navigation. onnxruntime-web comes from npm into .cache/web-peer.
Not part of CI.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn
import webgpu_compile
from playwright.sync_api import sync_playwright
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).resolve().parent
NPM = HERE.parents[1] / ".cache" / "web-peer"
PEER = "onnxruntime-web@1.30.0"
FLAGS = ["--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
PROMPT_TOKENS = 16
MINUTES = 60_000

MEASURE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>{title}</title>
<script type="module">
import {{ start }} from "{module}";
const {{ prompt, n, ...options }} = {options};
const timed = async (generate, n) => {{
  const begun = performance.now();
  const tokens = [];
  for await (const token of generate(prompt, n)) tokens.push(token);
  return {{ tokens, seconds: (performance.now() - begun) / 1000 }};
}};
window.measured = (async () => {{
  const generate = await start(options);
  await timed(generate, 1);
  const first = performance.now() / 1000;
  await timed(generate, n); // every pipeline has run
  const {{ tokens, seconds }} = await timed(generate, n);
  return {{ first, rate: n / seconds, tokens }};
}})();
</script>"""

OURS = """import { load } from "/ours/runtime.js";
export async function start({ variant }) {
  const session = await load("/ours/", variant ? { variant } : {});
  console.log(session.variantReason);
  return async function* (prompt, n) {
    await session.reset();
    yield* session.generate(prompt, { maxNewTokens: n, stopTokens: [] });
  };
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="generated for the rate")
    parser.add_argument("--variant", help="of ours, instead of its own choice")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        webgpu_compile.compile(args.model, out, max_length=256)
        manifest = json.loads((out / "manifest.json").read_bytes())
        vocab_size = manifest["sequence"]["vocab_size"]
        shape = peer_shape(args.model) | {"capacity": 256, "vocabSize": vocab_size}
        shared = {"prompt": [(7 * i + 1) % vocab_size for i in range(PROMPT_TOKENS)], "n": args.tokens}
        pages = {
            "ours": MEASURE.format(
                title="ours", module="/start.js", options=json.dumps(shared | {"variant": args.variant})
            ),
            "peer": MEASURE.format(
                title="peer", module="/peer/loop.js", options=json.dumps(shared | {"shape": shape})
            ),
        }
        with serving(application(out, args.model, pages)) as url:
            rounds = [{name: measure(f"{url}{name}.html") for name in order(i)} for i in range(args.rounds)]
    report(rounds, as_json=args.json)


def install() -> None:
    """onnxruntime-web from npm, unless it is there."""
    package = NPM / "node_modules" / "onnxruntime-web" / "package.json"
    if not package.is_file() or json.loads(package.read_bytes())["version"] != PEER.rpartition("@")[2]:
        NPM.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "install",
            "--prefix",
            str(NPM),
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            PEER,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def peer_shape(model: Path) -> dict[str, int]:
    decoder = json.loads((model / "genai_config.json").read_bytes())["model"]["decoder"]
    return {
        "layers": decoder["num_hidden_layers"],
        "kvHeads": decoder["num_key_value_heads"],
        "headSize": decoder["head_size"],
    }


def order(i: int) -> tuple[str, str]:
    """Who is first changes from round to round: a machine warms up, or gets other work."""
    return ("ours", "peer") if i % 2 == 0 else ("peer", "ours")


def application(out: Path, model: Path, pages: dict[str, str]) -> Starlette:
    # Cross-origin isolation lets onnxruntime-web use threads.
    headers = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp"}

    async def page(request: Any) -> HTMLResponse:
        return HTMLResponse(pages[request.path_params["name"]], headers=headers)

    async def start(_: Any) -> HTMLResponse:
        return HTMLResponse(OURS, media_type="text/javascript")

    async def loop(_: Any) -> FileResponse:
        return FileResponse(HERE / "onnxruntime_web_loop.js", media_type="text/javascript")

    dist = NPM / "node_modules" / "onnxruntime-web" / "dist"
    return Starlette(
        routes=[
            Route("/{name}.html", page),
            Route("/start.js", start),
            Route("/peer/loop.js", loop),
            Mount("/peer/onnxruntime-web", StaticFiles(directory=dist)),
            Mount("/peer/model", StaticFiles(directory=model)),
            Mount("/ours", StaticFiles(directory=out)),
        ]
    )


@contextmanager
def serving(application: Starlette) -> Iterator[str]:
    config = uvicorn.Config(application, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def measure(url: str) -> dict[str, Any]:
    """One page in a browser of its own."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            page = browser.new_page()
            page.set_default_timeout(10 * MINUTES)
            page.on("console", lambda message: print(f"  {message.text}", flush=True))
            page.on("pageerror", lambda error: print(f"  {error}", flush=True))
            page.goto(url)
            found: dict[str, Any] = page.evaluate("measured")
            return found
        finally:
            browser.close()


def n_same(ours: list[int], theirs: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))


def report(rounds: list[dict[str, Any]], *, as_json: bool) -> None:
    same = min(n_same(found["ours"]["tokens"], found["peer"]["tokens"]) for found in rounds)
    figures = {
        what: {
            **{name: median(found[name][what] for found in rounds) for name in ("ours", "peer")},
            "ratio": median(found["ours"][what] / found["peer"][what] for found in rounds),
        }
        for what in ("rate", "first")
    }
    if as_json:
        print(json.dumps({"peer": PEER, "rounds": rounds, "median": figures, "n_same_tokens": same}))
        return
    n_tokens = len(rounds[0]["ours"]["tokens"])
    print(f"{len(rounds)} rounds, medians; of {n_tokens} tokens the first {same} are the same\n")
    print(f"| | ours | {PEER} | ratio |\n| --- | ---: | ---: | ---: |")
    names = {
        "rate": f"{n_tokens} tokens behind a prompt of {PROMPT_TOKENS}, tokens/s",
        "first": "page load to first token, s",
    }
    for what, found in figures.items():
        print(f"| {names[what]} | {found['ours']:.2f} | {found['peer']:.2f} | {found['ratio']:.2f} |")


if __name__ == "__main__":
    main()
