"""The shaders for reading: coloured WGSL, and of near-identical ones only the lines that differ.

Chunk sizes and variants are the same template with other numbers; a page that repeated them in full would be
megabytes of the same text. The first shader of a template is shown in full, later ones against the most
similar of those shown in full, as long as that is shorter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from ..plan import Plan
from .shaders import File, ShaderSet

CONTEXT = 1
"""Unchanged lines shown on each side of a changed one."""

_NODES = re.compile(r"^// ONNX nodes:\n(?://   [^\n]*\n)*", re.MULTILINE)

LARGEST_DIFF = 0.5
"""A difference is shown where its lines are at most this part of the shader's; else the shader itself."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A WGSL file on the page. `like` is the one that it is compared with, None where it is whole."""

    number: int
    file: File
    users: tuple[str, ...]  # "decode (portable)"
    n_lines: int
    like: int | None
    n_changed: int
    code: Markup


@dataclass(frozen=True, slots=True)
class Family:
    """Shaders of one template."""

    template: str
    listings: tuple[Listing, ...]


def families(plan: Plan, shaders: ShaderSet) -> tuple[Family, ...]:
    """All WGSL files of the artifact by template, in order of first use."""
    numbers = file_numbers(shaders)
    templates: dict[int, str] = {}
    users: dict[int, dict[str, dict[str, None]]] = {}
    for variant, programs in plan.variants.items():
        for planned in programs:
            for step, kernel in enumerate(planned.program.kernels):
                number = numbers[shaders.index[variant, kernel.name, planned.program.name, step]]
                templates.setdefault(number, kernel.template.removesuffix(".wgsl.j2"))
                users.setdefault(number, {}).setdefault(planned.program.name, {})[variant] = None
    members: dict[str, list[int]] = {}
    for number in sorted(templates):
        members.setdefault(templates[number], []).append(number)
    return tuple(Family(name, tuple(_listings(members, shaders, users))) for name, members in members.items())


def file_numbers(shaders: ShaderSet) -> list[int]:
    """The number of the file, of each shader."""
    numbers = {file.name: number for number, file in enumerate(shaders.files)}
    return [numbers[shader.file.name] for shader in shaders.shaders]


def body(text: str) -> str:
    """A shader without the comments that name its ONNX nodes: the report lists them with the steps."""
    return _NODES.sub("", text).strip("\n")


def _listings(
    numbers: Sequence[int], shaders: ShaderSet, users: Mapping[int, Mapping[str, Mapping[str, None]]]
) -> Iterator[Listing]:
    whole: list[tuple[int, list[str]]] = []
    files = shaders.files
    for number in numbers:
        file = files[number]
        lines = body(file.text).split("\n")
        coloured = highlight("\n".join(lines)).split("\n")
        named = tuple(f"{program} ({', '.join(variants)})" for program, variants in users[number].items())
        against = [(_difference(other, lines), like) for like, other in whole]
        groups, like = min(against, key=lambda pair: _n_shown(pair[0]), default=([], None))
        if like is None or _n_shown(groups) > LARGEST_DIFF * len(lines):
            whole.append((number, lines))
            code = Markup("\n").join(map(Markup, coloured))
            yield Listing(number, file, named, len(lines), None, len(lines), code)
        else:
            old = highlight("\n".join(dict(whole)[like])).split("\n")
            code, changed = _diff(groups, old, coloured)
            yield Listing(number, file, named, len(lines), like, changed, code)


Opcode = tuple[str, int, int, int, int]


def _difference(old: Sequence[str], new: Sequence[str]) -> list[list[Opcode]]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [list(group) for group in matcher.get_grouped_opcodes(CONTEXT)]


def _n_shown(groups: Sequence[Sequence[Opcode]]) -> int:
    return sum(
        end - start + (old_end - old_start if tag != "equal" else 0)
        for group in groups
        for tag, old_start, old_end, start, end in group
    )


def _diff(groups: Sequence[Sequence[Opcode]], old: Sequence[str], new: Sequence[str]) -> tuple[Markup, int]:
    """The changed lines with their surroundings, marked - and + as in any diff; and how many differ."""
    lines: list[str] = []
    changed = 0
    for group in groups:
        lines.append(f"<em>line {group[0][3] + 1}</em>")
        for tag, old_start, old_end, start, end in group:
            if tag == "equal":
                lines += [f"  {line}" for line in new[start:end]]
                continue
            lines += [f"<del>- {line}</del>" for line in old[old_start:old_end]]
            lines += [f"<ins>+ {line}</ins>" for line in new[start:end]]
            changed += max(end - start, old_end - old_start)
    return Markup("\n".join(lines)), changed


# One letter an element keeps a page of 400 kB of WGSL below a megabyte; report.css gives them colours.
# These three mean nothing to a screen reader, which is as it should be.
_ELEMENTS = {"Comment": "i", "Keyword": "b", "Name.Builtin": "u", "Name.Decorator": "u"}


@cache
def _element(token: object) -> str:
    """The element for a Pygments token type, or none."""
    name = str(token).removeprefix("Token.")
    return next((element for prefix, element in _ELEMENTS.items() if name.startswith(prefix)), "")


def highlight(code: str) -> str:
    """WGSL as HTML, the same number of lines, every element closed on its line."""
    if "/*" in code:  # a comment that lines cannot be cut from
        return _coloured(code)
    return "\n".join(map(_coloured, code.split("\n")))


@lru_cache(maxsize=16384)  # shaders of one template are mostly the same lines
def _coloured(code: str) -> str:
    parts: list[str] = []
    for element, group in groupby(_lexer().get_tokens(code), key=lambda token: _element(token[0])):
        text = str(escape("".join(text for _, text in group)))
        if element:
            text = "\n".join(f"<{element}>{line}</{element}>" if line else "" for line in text.split("\n"))
        parts.append(text)
    return "".join(parts)


@cache
def _lexer() -> Any:
    from pygments.lexers import WgslLexer  # only here: `--check` does without

    return WgslLexer(stripnl=False, ensurenl=False)
