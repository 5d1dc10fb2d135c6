"""An artifact's folder: found, read and checked before anything of it reaches the GPU."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .check_manifest import check_manifest
from .errors import RuntimeFailure
from .programs import Variant
from .schema import VERSION, Manifest

MAX_MANIFEST_NBYTES = 64 << 20
MAX_SHADER_NBYTES = 1 << 20
MAX_FILE_NBYTES = 256 << 20

RECOMPILE = "compile the model again with webgpu-compile"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose manifest is read and consistent. Shaders and shards are checked when they are read."""

    folder: Path
    manifest: Manifest
    variants: tuple[Variant, ...]

    def module_source(self, file: str, *, verify: bool = True) -> str:
        """The WGSL of a file under `shaders/`, with its hash checked.

        Raises:
            RuntimeFailure: the file is missing, changed, too big, or not text.
        """
        name = f"shaders/{file}"
        data = read_bounded(self.folder, name, MAX_SHADER_NBYTES)
        if verify:
            check_hash(name, data, self.manifest.modules[file])
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise RuntimeFailure(name, "is not UTF-8 text", RECOMPILE) from None

    def file(self, name: str) -> bytes:
        """Another file of the artifact, such as tokenizer.json, with its hash checked.

        Raises:
            RuntimeFailure: the manifest does not list it, or it is missing or changed.
        """
        if name not in self.manifest.files:
            raise RuntimeFailure(name, "is not part of this artifact", "compile a folder that has it")
        data = read_bounded(self.folder, name, MAX_FILE_NBYTES)
        check_hash(name, data, self.manifest.files[name])
        return data


def open_artifact(path: str | Path) -> Artifact:
    """Read `manifest.json` under `path` and check everything that it says.

    Raises:
        RuntimeFailure: not a folder, not ours, truncated, a newer schema, or inconsistent.
    """
    folder = Path(path)
    if not folder.is_dir():
        if not folder.exists():
            raise RuntimeFailure(str(path), "does not exist", "give the folder that webgpu-compile wrote")
        raise RuntimeFailure(str(path), "is not a folder", "give the folder that webgpu-compile wrote")
    if not (folder / "manifest.json").exists():
        raise RuntimeFailure(
            str(path), "has no manifest.json", "give the folder that webgpu-compile wrote, or compile again"
        )
    data = read_bounded(folder, "manifest.json", MAX_MANIFEST_NBYTES)
    manifest = decode_manifest(data)
    return Artifact(folder.resolve(), manifest, check_manifest(manifest))


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in `data`; its format and version are looked at before its fields.

    Raises:
        RuntimeFailure: with the path of the field that is wrong.
    """
    document = strict_json("manifest.json", data)
    if not isinstance(document, dict) or document.get("format") != "webgpu-compile":
        raise RuntimeFailure(
            "manifest.json", "was not written by webgpu-compile", "give the folder that webgpu-compile wrote"
        )
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise RuntimeFailure(
            "manifest.json",
            f"has schema version {version}, newer than {VERSION}, the newest that this runtime reads",
            "upgrade webgpu-compile, or compile the model again with this one",
        )
    if version != VERSION:
        raise RuntimeFailure("manifest.json", f"has schema version {version!r}, not {VERSION}", RECOMPILE)
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise RuntimeFailure("manifest.json", f"breaks the schema: {error}", RECOMPILE) from None


def strict_json(subject: str, data: bytes) -> Any:
    """Parse JSON that no two parsers read differently: UTF-8, no duplicate keys, no NaN.

    Raises:
        RuntimeFailure: naming `subject`.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RuntimeFailure(subject, f"has the key {twice[:80]!r} twice in one object", RECOMPILE)
        return result

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except (ValueError, RecursionError) as error:
        problem = f"is damaged or cut short ({str(error)[:120]})"
        raise RuntimeFailure(subject, problem, RECOMPILE) from None


def inside(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`; a link is followed only if it stays inside the folder.

    Raises:
        RuntimeFailure: missing, not a regular file, or outside.
    """
    path = folder / name
    try:
        target = path.resolve(strict=True)
        is_file = stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        raise RuntimeFailure(name, "is missing from the artifact", RECOMPILE) from None
    if not target.is_relative_to(folder.resolve()):
        raise RuntimeFailure(name, "is a link out of the artifact's folder", "copy the file into the folder")
    if not is_file:
        raise RuntimeFailure(name, "is not a regular file", RECOMPILE)
    return target


def read_bounded(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a small file of `folder`.

    Raises:
        RuntimeFailure: as `inside`, or more than `limit` bytes, or unreadable.
    """
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise RuntimeFailure(name, f"cannot be read ({error.strerror})", "check its permissions") from None
    if len(data) > limit:
        raise RuntimeFailure(name, f"is larger than {limit >> 20} MiB", RECOMPILE)
    return data


def check_hash(name: str, data: bytes, expected: str) -> None:
    """Compare SHA-256.

    Raises:
        RuntimeFailure: `data` is not what the compiler wrote.
    """
    if hashlib.sha256(data).hexdigest() != expected:
        raise RuntimeFailure(
            name, "was changed after it was compiled (its hash differs)", "copy the artifact or compile again"
        )
