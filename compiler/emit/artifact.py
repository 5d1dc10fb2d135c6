"""Writing the folder: beside its final place first, then renamed, so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CompileError
from .manifest import FORMAT
from .shaders import ShaderSet

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "genai_config.json",
)
"""Files of a model folder that travel with the artifact."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `out` when the block ends, and vanishes when it fails.

    Errors:
        CompileError: `out` exists and is not an artifact of ours, cannot be written, or the disk is full.
    """
    check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _disk_error(out, error) from error
    try:
        fresh.chmod(0o755 & ~_umask())
        yield fresh
        _swap(fresh, out)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise _disk_error(out, error) from error
    except BaseException:  # Ctrl-C included: leave nothing behind
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but an artifact of ours or an empty folder."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        try:
            head = (out / "manifest.json").read_bytes()[:4096].decode(errors="replace")
        except OSError:
            head = ""
        if f'"format": "{FORMAT}"' in head:
            return
    raise CompileError(
        f"output {str(out)!r}",
        "exists and was not written by webgpu-compile",
        "give another -o, or remove it yourself",
    )


def write_shaders(folder: Path, shaders: ShaderSet) -> None:
    (folder / "shaders").mkdir()
    for shader in shaders.shaders:
        (folder / "shaders" / shader.file).write_bytes(shader.text.encode())


def copy_model_files(source: Path, folder: Path) -> dict[str, str]:
    """Copy the tokenizer and its like; returns the SHA-256 of each file by name."""
    hashes = {}
    for name in COPIED_FILES:
        file = source / name
        if file.is_file():
            data = file.read_bytes()
            (folder / name).write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def write_manifest(folder: Path, document: Mapping[str, Any]) -> None:
    """The manifest: `format` first, one line per step and buffer, so that it reads and diffs well."""
    (folder / "manifest.json").write_bytes(_format(document).encode() + b"\n")


def _format(value: Any, indent: int = 0) -> str:
    """JSON with every innermost record on one line."""
    if isinstance(value, (dict, list)) and not _flat(value):
        pad = "  " * (indent + 1)
        if isinstance(value, dict):
            items = [
                f"{json.dumps(k, ensure_ascii=False)}: {_format(v, indent + 1)}" for k, v in value.items()
            ]
        else:
            items = [_format(v, indent + 1) for v in value]
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        body = ",\n".join(pad + item for item in items)
        return f"{opening}\n{body}\n{'  ' * indent}{closing}"
    return json.dumps(value, ensure_ascii=False)


def _flat(value: Any) -> bool:
    """Whether a record is short enough in structure for one line: at most lists of numbers inside."""
    children = value.values() if isinstance(value, dict) else value
    return not any(isinstance(c, dict) or (isinstance(c, list) and _nested(c)) for c in children)


def _nested(value: list[Any]) -> bool:
    return any(isinstance(c, dict) or (isinstance(c, list) and _nested(c)) for c in value)


def _swap(fresh: Path, out: Path) -> None:
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        os.rename(out, old / "out")
        try:
            os.rename(fresh, out)
        except OSError:
            os.rename(old / "out", out)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(fresh, out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _disk_error(out: Path, error: OSError) -> CompileError:
    if error.errno == errno.ENOSPC:
        return CompileError(f"output {str(out)!r}", "the disk is full", "free some space or give another -o")
    return CompileError(
        f"output {str(out)!r}", f"cannot be written: {error.strerror}", "give another -o or mend its folder"
    )
