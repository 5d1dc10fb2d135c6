"""The training text: CPython's standard library, its tests, and its documentation.

A file is held out by its subject: `textwrap.py`, `test_textwrap.py` and `textwrap.rst` are all in the
training text or all out of it, so that the held-out loss is not helped by the same example seen elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

# pydoc_data is the documentation again; encodings are tables; the others are not by CPython, or not text
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
    "encoded_modules",
    "data",
    "_bundled",
}
SKIPPED_PREFIXES = ("_sysconfigdata", "badsyntax", "bad_")
HELD_OUT_SHARE = 0.03
MIN_NBYTES = 200


class Group(StrEnum):
    LIBRARY = "library"
    TESTS = "tests"
    DOCUMENTATION = "documentation"


@dataclass(frozen=True, slots=True)
class Document:
    """`path` is relative to the folder that the file came from."""

    path: str
    group: Group
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(subject(self.path).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def subject(path: str) -> str:
    """'textwrap' for test/test_textwrap.py and library/textwrap.rst.txt; a package's files share its name."""
    parts = [part.split(".")[0] for part in Path(path).parts]
    inside = [part for part in parts[:-1] if part not in ("test", "tests", "library")]
    name = inside[0] if inside and path.endswith(".py") else parts[-1]
    if path.endswith((".rst", ".rst.txt")) and name in ("index", "__init__") and inside:
        name = inside[-1]
    return name.removeprefix("test_").strip("_")


def collect(stdlibs: list[Path], docs: list[Path]) -> list[Document]:
    """Every document, sorted by group and path; of two files with one path the first folder's is taken.

    Raise ValueError when nothing is found.
    """
    found: dict[tuple[str, str], Document] = {}
    for folder in stdlibs:
        for path in sorted(folder.rglob("*.py")):
            add(found, folder, path, Group.LIBRARY)
    for folder in docs:
        for path in sorted([*folder.rglob("*.rst"), *folder.rglob("*.rst.txt")]):
            add(found, folder, path, Group.DOCUMENTATION)
    if not found:
        raise ValueError("no .py, .rst or .rst.txt files in the folders given")
    return [found[key] for key in sorted(found)]


def add(found: dict[tuple[str, str], Document], folder: Path, path: Path, group: Group) -> None:
    relative = path.relative_to(folder)
    folders = set(relative.parts[:-1])
    if folders & SKIPPED_FOLDERS or path.name.startswith(SKIPPED_PREFIXES):
        return
    if group is Group.LIBRARY and folders & {"test", "tests", "idle_test"}:
        group = Group.TESTS
    key = (str(group), relative.as_posix())
    if key in found:
        return
    text = read_text(path)
    if text is not None:
        found[key] = Document(relative.as_posix(), group, text)


def read_text(path: Path) -> str | None:
    """The file's text, or None for one that is unreadable, tiny, or more a table than a text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if len(text) < MIN_NBYTES or "\x00" in text:
        return None
    text = text.replace("\r\n", "\n").rstrip() + "\n"
    solid = [character for character in text if not character.isspace()]
    letters = sum(character.isalpha() or character == "_" for character in solid)
    lines = text.splitlines()
    if letters < 0.6 * len(solid) or max(len(line) for line in lines) > 2000:
        return None
    return text


def sources_text(documents: list[Document]) -> str:
    """One line a file: group, split, characters, path."""
    return "".join(f"{line}\n" for line in source_lines(documents))


def source_lines(documents: list[Document]) -> Iterator[str]:
    for group in Group:
        chosen = [document for document in documents if document.group is group]
        held_out = [document for document in chosen if document.held_out]
        size, held_size = (sum(len(d.text) for d in part) for part in (chosen, held_out))
        yield f"# {group}: {len(chosen)} files, {size} characters; held out {len(held_out)}, {held_size}"
    for document in documents:
        split = "held-out" if document.held_out else "train"
        yield f"{document.group} {split} {len(document.text)} {document.path}"
