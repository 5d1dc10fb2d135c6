"""Modules: WGSL files with the entry points of related kernels, and what these share written once.

Kernels of one template differ in a few functions, a few numbers, or both. A module has

* each declaration once, whichever of its kernels use it;
* a constant whose number differs between kernels as an `override`, which a pipeline gives its value: for
  compilers of shaders that is a constant all the same;
* of functions and bindings that differ, each form, under names of their own; what is said of them once;
* an entry point for each kernel that does something else than the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .trim import Declaration, Paragraph, parameters, written

MIN_SHARED = 0.03
"""The part of a kernel's code that it must have in common with the others of a module to be in it."""

ENTRY = "main"
"""The entry point of a template, and of a module that has one."""

_NUMBER = re.compile(r"const (\w+) = ([0-9]+u|[0-9]+\.[0-9]*(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+);")
_SIZE = re.compile(r"(?<=^var<workgroup> )\w+: array<.*, \w+>;$")
_ARRAY = re.compile(r"\barray<[^;{}()]*")
_CONST = re.compile(r"\bconst\b[^;]*;")
_PLACE = re.compile(r"@NODES (\w+)@\n")


@dataclass(slots=True)
class Unit:
    """A kernel's declarations, by the name that its module's entry point may have."""

    name: str
    paragraphs: Sequence[Paragraph]
    declared: dict[str, Declaration] = field(init=False)

    def __post_init__(self) -> None:
        self.declared = {each.name: each for paragraph in self.paragraphs for each in paragraph if each.name}

    @property
    def size(self) -> int:
        """Characters of code."""
        return sum(len(each.code) for each in self.declared.values())

    @property
    def numbers(self) -> dict[str, str]:
        """Literals of constants by name."""
        found = ((name, _NUMBER.fullmatch(each.code)) for name, each in self.declared.items())
        return {name: match[2] for name, match in found if match}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point, and the values of the module's overrides where they are not the default."""

    name: str
    constants: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """A text in which `@NODES name@` stands for a comment on the entry point, and its kernels' entries."""

    text: str
    entries: tuple[Entry, ...]


def commented(text: str, comments: Mapping[str, str]) -> str:
    """A module's text with a comment above each entry point, by its name."""
    return _PLACE.sub(lambda found: comments.get(found[1], ""), text)


def merged(units: Sequence[Unit]) -> list[tuple[Module, tuple[int, ...]]]:
    """Modules of units that have much in common, each with the places of its units in `units`."""
    groups: list[list[int]] = []
    for i in sorted(range(len(units)), key=lambda i: -units[i].size):  # stable: equals in their order
        unit = units[i]
        best = max(groups, key=lambda group: _common(unit, [units[j] for j in group]), default=None)
        if best is not None and _common(unit, [units[j] for j in best]) >= MIN_SHARED:
            best.append(i)
        else:
            groups.append([i])
    members = sorted(tuple(sorted(group)) for group in groups)
    return [(_module([units[i] for i in group]), group) for group in members]


def _common(unit: Unit, others: Sequence[Unit]) -> float:
    """The part of `unit`'s code that is in others as well."""
    known = {(name, each.code) for other in others for name, each in other.declared.items()}
    codes = {name: each.code for name, each in unit.declared.items() if not each.code.startswith("const ")}
    size = sum(map(len, codes.values()))
    return sum(len(code) for name, code in codes.items() if (name, code) in known) / max(size, 1)


def _module(units: Sequence[Unit]) -> Module:
    overrides = _overrides(units)
    defaults: dict[str, str] = {}
    for unit in units:
        for name in overrides:
            if name in unit.numbers:
                defaults.setdefault(name, unit.numbers[name])
    versions = _versions(units, overrides)
    names = _names(units, versions)
    place: set[tuple[str, int]] = set()
    texts: set[str] = set()
    paragraphs: list[list[Declaration]] = []
    for unit, version in zip(units, versions, strict=True):
        renamed = {name: names[name, n] for name, n in version.items() if names[name, n] != name}
        for paragraph in unit.paragraphs:
            kept = []
            for each in paragraph:
                if each.name and (each.name, version[each.name]) not in place:
                    place.add((each.name, version[each.name]))
                    said = replace(each, comment="") if each.comment in texts else each
                    texts.add(each.comment)
                    kept.append(_rewritten(said, renamed, overrides, defaults))
                elif not each.name and each.comment + each.text not in texts:
                    texts.add(each.comment + each.text)
                    kept.append(each)
            if any(each.name for each in kept) or len(kept) == len(paragraph):
                paragraphs.append(kept)
    entries = []
    for unit, version in zip(units, versions, strict=True):
        values = {name: unit.numbers[name] for name in sorted(overrides) if name in unit.numbers}
        given = {name: _value(text) for name, text in values.items() if text != defaults[name]}
        entries.append(Entry(names[ENTRY, version[ENTRY]], tuple(given.items())))
    return Module(written(paragraphs), tuple(entries))


def _value(literal: str) -> float:
    return int(literal[:-1]) if literal.endswith("u") else float(literal)


# -- numbers that differ


def _overrides(units: Sequence[Unit]) -> set[str]:
    """Constants that become overrides: those whose numbers differ, where WGSL and naga take them.

    WGSL has no overrides in the types of variables, but for arrays in workgroup memory, nor in constants of
    functions. naga 29 aborts the process at some expressions of overrides outside of functions. A number that
    is needed there stays a constant of each kernel's own.
    """
    values: dict[str, set[str]] = {}
    for unit in units:
        for name in unit.declared:
            values.setdefault(name, set()).add(unit.numbers.get(name, ""))
    found = {name for name, texts in values.items() if len(texts) > 1 and "" not in texts}
    return found - {name for unit in units for name in _constants(unit, found)}


def _constants(unit: Unit, names: set[str]) -> set[str]:
    """Those of `names` that `unit` has where they must be constants."""
    found: set[str] = set()
    for each in unit.declared.values():
        code = each.code
        if re.match(r"(?:@[^{]*)?fn\b", code):
            places = _ARRAY.findall(code) + _CONST.findall(code)
        else:
            places = [_SIZE.sub("", code)]
        found |= {
            name for name in names - {each.name} if any(re.search(rf"\b{name}\b", place) for place in places)
        }
    return found


# -- declarations that differ


def _versions(units: Sequence[Unit], overrides: set[str]) -> list[dict[str, int]]:
    """For each unit and name: which of the forms of that name it has. Forms that use other forms differ."""
    keys = [
        {name: _key(unit, name, overrides) for name in unit.declared} for unit in units
    ]  # refined until nothing changes: as deep as declarations use each other
    numbers = _numbered(keys)
    while True:
        deeper = [
            {
                name: repr((numbers[i][name], sorted((word, numbers[i][word]) for word in _used(unit, name))))
                for name in unit.declared
            }
            for i, unit in enumerate(units)
        ]
        refined = _numbered(deeper)
        if refined == numbers:
            return numbers
        numbers = refined


def _key(unit: Unit, name: str, overrides: set[str]) -> str:
    return f"override {name}" if name in overrides else unit.declared[name].code


def _used(unit: Unit, name: str) -> set[str]:
    return {word for word in unit.declared[name].words if word in unit.declared and word != name}


def _numbered(keys: Sequence[Mapping[str, str]]) -> list[dict[str, int]]:
    """Texts by name as numbers, in order of appearance."""
    known: dict[str, dict[str, int]] = {}
    result = []
    for of_unit in keys:
        numbers = {}
        for name, key in of_unit.items():
            forms = known.setdefault(name, {})
            numbers[name] = forms.setdefault(key, len(forms))
        result.append(numbers)
    return result


def _names(units: Sequence[Unit], versions: Sequence[Mapping[str, int]]) -> dict[tuple[str, int], str]:
    """What each form of a declaration is called: the first as in its template, others after their kernel."""
    taken = {word for unit in units for each in unit.declared.values() for word in each.words} - {ENTRY}
    n_entries = len({version[ENTRY] for version in versions})
    first: dict[str, set[str]] = {}  # words of the kernel with the first form
    names: dict[tuple[str, int], str] = {}
    entries: dict[int, str] = {}
    for unit, version in zip(units, versions, strict=True):
        if version[ENTRY] not in entries:
            entries[version[ENTRY]] = _free(unit.name, taken) if n_entries > 1 else ENTRY
        entry = entries[version[ENTRY]]
        names[ENTRY, version[ENTRY]] = entry
        words = entry.split("_")
        for name, n in version.items():
            known = first.setdefault(name, set(words))
            if (name, n) not in names:
                suffix = "_".join(word for word in words if word not in known) or words[0]
                names[name, n] = _free(f"{name}_{suffix}", taken) if n else name
    return names


def _free(name: str, taken: set[str]) -> str:
    candidates = (name, *(f"{name}_{n}" for n in range(2, 1000)))
    found = next(each for each in candidates if each not in taken)
    taken.add(found)
    return found


def _stem(names: Iterable[str]) -> str:
    """What names begin with, in whole words."""
    words = [name.split("_") for name in names]
    stem = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        stem.append(column[0])
    return "_".join(stem)


def file_stem(names: Sequence[str]) -> str:
    """What a module of kernels of these names is called."""
    return _stem(names) or names[0]


def _rewritten(
    each: Declaration, renamed: Mapping[str, str], overrides: set[str], defaults: Mapping[str, str]
) -> Declaration:
    text = each.text
    if each.name in overrides:
        default = defaults[each.name]
        kind = "u32" if default.endswith("u") else "f32"
        text = re.sub(r"const \w+ = [^;]*;", f"override {each.name}: {kind} = {default};", text, count=1)
    comment = each.comment
    if each.name == ENTRY:
        comment = f"@NODES {renamed.get(ENTRY, ENTRY)}@\n{comment}"
    if renamed := {name: new for name, new in renamed.items() if name not in parameters(each.code)}:
        # Comments are matched first, and stay as they are.
        pattern = re.compile(rf"//[^\n]*|(?<![.\w])(?:{'|'.join(map(re.escape, renamed))})\b")
        text = pattern.sub(lambda found: renamed.get(found[0], found[0]), text)
    return Declaration(each.name, comment, text, each.words, each.bound)
