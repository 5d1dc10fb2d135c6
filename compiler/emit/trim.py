"""WGSL as declarations; those that a shader does not need are left out, as are words behind the last one.

Templates share snippets, and not every kernel uses all of one. What is left is shorter, and kernels that
differ only in what neither reads are one shader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..sequence import MAX_STOP_TOKENS, WORDS

SEQUENCE_STRUCT = "struct Sequence;"
"""What stands in `sequence.wgsl.j2`; `written` puts the words there."""

WIDTH = 110

_NAME = re.compile(r"\s*(?:@\w+(?:\([^)]*\))?\s*)*(?:fn|struct|const|override|alias|var(?:<[^>]*>)?)\s+(\w+)")
_COMMENT = re.compile(r"//[^\n]*")
_HEAD = re.compile(r"\s*(?:@\w+(?:\([^)]*\))?\s*)*fn\s+\w+(\((?:[^{])*)\{")
_PARAMETER = re.compile(r"(\w+)\s*:")
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A declaration of a module with the comment lines above it; `name` is empty if it is a comment only."""

    name: str
    comment: str
    text: str
    words: frozenset[str]
    bound: bool

    @property
    def code(self) -> str:
        """What the compiler sees: no comments, no indentation."""
        return "\n".join(line.strip() for line in _COMMENT.sub("", self.text).splitlines() if line.strip())


Paragraph = tuple[Declaration, ...]
"""Declarations with no empty line between them."""


def trimmed(wgsl: str) -> str:
    """`wgsl` without declarations that neither `main` nor a binding needs, with the words of the sequence."""
    return written(reached(wgsl))


def reached(wgsl: str) -> list[Paragraph]:
    """The declarations of `wgsl` that `main` or a binding needs."""
    paragraphs = [tuple(_declarations(paragraph)) for paragraph in _paragraphs(wgsl)]
    declared = {each.name: each for paragraph in paragraphs for each in paragraph if each.name}
    needed = {""}
    waiting = [each for each in declared.values() if each.name == "main" or each.bound]
    while waiting:
        each = waiting.pop()
        if each.name not in needed:
            needed.add(each.name)
            waiting += [declared[word] for word in each.words if word in declared]
    return [kept for paragraph in paragraphs if (kept := _kept(paragraph, needed))]


def _kept(paragraph: Paragraph, needed: set[str]) -> Paragraph:
    kept = [each for each in paragraph if each.name in needed]
    first = paragraph[0]  # what is said above a list of constants is said of all of them
    if kept and kept[0] is not first and first.text.count("\n") == 1 and first.comment:
        kept.insert(0, _declaration(first.comment, ""))
    return tuple(kept)


def written(paragraphs: Iterable[Sequence[Declaration]]) -> str:
    """The text of declarations, with the words of the sequence that they read or write."""
    body = "\n".join("".join(each.comment + each.text for each in paragraph) for paragraph in paragraphs)
    return body.replace(SEQUENCE_STRUCT, _sequence_struct(body))


def _paragraphs(wgsl: str) -> Iterator[list[str]]:
    """Lines between empty lines, but for those inside of a declaration."""
    paragraph: list[str] = []
    depth = 0
    for line in wgsl.split("\n"):
        if line.strip() or depth:
            paragraph.append(line + "\n")
        elif paragraph:
            yield paragraph
            paragraph = []
        code = _COMMENT.sub("", line)
        depth += sum(map(code.count, "({[")) - sum(map(code.count, ")}]"))
    if paragraph:
        yield paragraph


def _declarations(paragraph: list[str]) -> Iterator[Declaration]:
    comment = text = ""
    depth = 0
    for line in paragraph:
        code = _COMMENT.sub("", line).rstrip()
        if not text and not code:
            comment += line
            continue
        text += line
        depth += sum(map(code.count, "({[")) - sum(map(code.count, ")}]"))
        if depth == 0 and code.endswith((";", "}")):
            yield _declaration(comment, text)
            comment = text = ""
    if comment or text:
        yield _declaration(comment, text)


def _declaration(comment: str, text: str) -> Declaration:
    code = _COMMENT.sub("", text)
    name = _NAME.match(code)
    words = frozenset(_WORD.findall(code)) - parameters(code)
    return Declaration(name[1] if name else "", comment, text, words, "@group" in code)


def parameters(code: str) -> frozenset[str]:
    """Names of a function's parameters, which hide declarations of these names, or of a struct's fields."""
    head = code if re.match(r"\s*struct\b", code) else _HEAD.match(code)
    text = head if isinstance(head, str) else head[1] if head else ""
    return frozenset(_PARAMETER.findall(text))


def _sequence_struct(body: str) -> str:
    """The struct of the words, up to the last one that `body` reads or writes."""
    used = set(re.findall(r"\b(?:sequence|now)\.(\w+)", body))
    last = max((i for i, word in enumerate(WORDS) if word in used), default=0)
    fields = [f"{word}: u32," for word in WORDS[: last + 1]]
    if last + 1 == len(WORDS):
        fields[-1] = f"{WORDS[-1]}: array<u32, {MAX_STOP_TOKENS}>,"
    whole = f"struct Sequence {{ {' '.join(fields)[:-1]} }}"
    if len(whole) <= WIDTH:
        return whole
    lines = ["struct Sequence {"]
    line = " "
    for field in fields:
        if len(line) + 1 + len(field) > WIDTH:
            lines.append(line)
            line = " "
        line += f" {field}"
    return "\n".join([*lines, line, "}"])
