"""Writing the folder: beside its final place first, then renamed, so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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


OWN_FOLDERS = {"shaders": ".wgsl", "weights": ".safetensors"}
"""What an artifact holds besides its manifest and the files that this names: folders of one kind of file."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `out` when the block ends, and vanishes when it fails.

    Errors:
        CompileError: `out` exists and is not an artifact of ours, cannot be written, or the disk is full.
    """
    check_replaceable(out)
    place = Path(os.path.abspath(out))  # "." has no name to put a folder beside
    made = [parent for parent in place.parents if not parent.exists()]
    fresh = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        fresh.chmod(0o777 & ~_umask())
        yield fresh
        _swap(fresh, place)
    except BaseException as error:  # Ctrl-C included: leave nothing behind
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):  # not made, or no longer empty
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise _disk_error(out, error) from error
        raise


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but an empty folder, or an artifact of ours that nobody has added to.

    Errors:
        CompileError: saying what `out` is instead.
    """
    subject = f"output {str(out)!r}"
    try:
        if out.is_symlink():
            raise CompileError(subject, "is a symbolic link", "give the folder itself")
        if not out.exists():
            return
        if out.samefile(Path.cwd()):  # the shell would be left in a folder that is gone
            raise CompileError(subject, "is the current folder", "give a folder inside it")
        if not out.is_dir():
            raise CompileError(subject, "is a file", "give a folder")
        entries = sorted(entry.name for entry in out.iterdir())
        if not entries:
            return
        manifest = _own_manifest(out)
        if manifest is None:
            raise CompileError(
                subject,
                "exists and was not written by webgpu-compile",
                "give another folder, or remove it yourself",
            )
        added = _foreign_entries(out, entries, manifest)
    except OSError as error:
        raise _disk_error(out, error) from error
    if added:
        raise CompileError(
            subject,
            f"also holds {added[0]}, which webgpu-compile did not write",
            "move it away, or give another folder",
        )


def _own_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of an artifact of any version, or None for any other folder."""
    try:
        document = json.loads((out / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    ours = isinstance(document, dict) and document.get("format") == FORMAT
    return document if ours else None


def _foreign_entries(out: Path, entries: list[str], manifest: Mapping[str, Any]) -> list[str]:
    """What someone else put into an artifact: a .git, notes. Replacing the folder would lose it."""
    files = manifest.get("files")
    known = {"manifest.json", *(files if isinstance(files, dict) else ())}
    foreign = [name for name in entries if name not in known and name not in OWN_FOLDERS]
    for name, suffix in OWN_FOLDERS.items():
        if (out / name).is_dir():
            foreign += [
                f"{name}/{file.name}" for file in sorted((out / name).iterdir()) if file.suffix != suffix
            ]
    return foreign


def write_shaders(folder: Path, shaders: ShaderSet) -> None:
    (folder / "shaders").mkdir()
    for file in shaders.files:
        (folder / "shaders" / file.name).write_bytes(file.text.encode())


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


def write_json(folder: Path, name: str, document: Mapping[str, Any]) -> dict[str, str]:
    """The manifest or the details: `format` first, one line per step and buffer, so that it diffs well.

    Returns the SHA-256 by name.
    """
    data = _format(document).encode() + b"\n"
    (folder / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest()}


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
    """Put `fresh` in the place of `out`. Interrupted at any point, one of the two is there, whole."""
    if not out.exists():
        os.rename(fresh, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    try:
        os.rename(out, aside / "out")
        os.rename(fresh, out)
    finally:
        if not out.exists() and (aside / "out").exists():
            os.rename(aside / "out", out)
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _disk_error(out: Path, error: OSError) -> CompileError:
    if error.errno == errno.ENOSPC:
        return CompileError(
            f"output {str(out)!r}", "the disk is full", "free some space, or give another folder"
        )
    return CompileError(
        f"output {str(out)!r}",
        f"cannot be written: {error.strerror}",
        "give another folder, or mend its parent",
    )
