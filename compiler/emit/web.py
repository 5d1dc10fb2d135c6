"""The page of an artifact: the runtime for browsers, the page's own files and the tokenizer library.

`runtime.js` is made of the modules in `runtime/web/`, one after the other without their imports and type
annotations: one request, and nothing to resolve. The order below is that of their imports.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import jinja2

MODULES = (
    "errors",
    "sequence",
    "manifest",
    "device",
    "store",
    "source",
    "replay",
    "resources",
    "ports",
    "sampling",
    "generate",
    "session",
    "progress",
    "runtime",
)
PAGE_FILES = ("index.html", "page.js", "text.js", "page.css")
"""The page of a language model; that of a model without a sequence has `graph.js` besides."""
VENDORED = ("tokenizers.js", "tokenizers.LICENSE.txt")
"""@huggingface/tokenizers, put beside the modules by `make web-deps`; the page says when it is missing."""
CHAT = ("jinja.js", "jinja.LICENSE.txt")
"""@huggingface/jinja, three times the runtime: only for models that have a chat template."""

_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_DOC = re.compile(r"^[ \t]*/\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)
_TYPE = re.compile(r"/\*\* @type \{.*?\} \*/ ?(?:\((\w+)\))?", re.DOTALL)
_EXPORT = re.compile(r"^export (?=const|let|class|function|async)", re.MULTILINE)


def web_files(*, decoder: bool, chat: bool = False) -> dict[str, bytes]:
    """Every file of the page, by its name in the artifact; `chat` for a model with a chat template."""
    page = files(__package__.removesuffix("compiler.emit") + "templates") / "web"
    names = PAGE_FILES if decoder else (*PAGE_FILES, "graph.js")
    texts = {name: (page / name).read_text(encoding="utf-8") for name in names}
    index = jinja2.Template(texts["index.html"], trim_blocks=True, keep_trailing_newline=True)
    texts["index.html"] = index.render(decoder=decoder)
    found = {name: (untyped(text) if name.endswith(".js") else text).encode() for name, text in texts.items()}
    found["runtime.js"] = joined_runtime().encode()
    for name in VENDORED + CHAT * chat:
        file = _runtime_folder() / "vendor" / name
        if file.is_file():
            found[name] = file.read_bytes()
    return found


def write_web_files(folder: Path, *, decoder: bool) -> dict[str, str]:
    """Write the page into an artifact that has the model's files; returns the SHA-256 of each by name."""
    hashes = {}
    for name, data in web_files(decoder=decoder, chat=has_chat_template(folder)).items():
        (folder / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def has_chat_template(folder: Path) -> bool:
    """Whether a folder of a model has a chat template, in a file of its own or in its tokenizer's."""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def joined_runtime() -> str:
    """All modules as one."""
    parts = ["// The runtime of webgpu-compile. Sources with types: runtime/web/ of the package.\n"]
    for name in MODULES:
        text = (_runtime_folder() / f"{name}.js").read_text(encoding="utf-8")
        text = untyped(_IMPORT.sub("", text))
        if name != "runtime":
            text = _EXPORT.sub("", text)
        parts.append(f"{text.strip()}\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def untyped(source: str) -> str:
    """JavaScript without its JSDoc: most of that is types."""
    return _TYPE.sub(lambda found: found[1] or "", _DOC.sub("", source))


def _runtime_folder() -> Path:
    """Where the modules lie. The compiler does not import the runtime: these are data."""
    spec = find_spec(__package__.removesuffix("compiler.emit") + "runtime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "web"
