"""From WGSL files to pipelines: each backend's dialect, and errors that show the line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import wgpu

from .errors import RuntimeFailure

MAX_NESTING = 128
MAX_TERMS = 4096
CONTEXT_LINES = 2

_COMMENT = re.compile(r"//[^\n\r\v\f\x85\u2028\u2029]*|/\*.*?\*/", re.DOTALL)
_OVERRIDE = re.compile(r"\boverride\s+(\w+)")
_PLAIN_OVERRIDE = re.compile(r"^override \w+: (?:u32|f32) = [0-9.e+-]+u?;[ \t]*$", re.MULTILINE)
_SUBGROUPS = re.compile(r"^enable subgroups;[ \t]*$", re.MULTILINE)
_POSITION = re.compile(r"wgsl:(\d+):(\d+)")


def for_naga(source: str) -> str:
    """Blank out `enable subgroups;`, which Tint requires and naga 29 rejects. Line numbers stay."""
    return _SUBGROUPS.sub("", source)


def check_source(name: str, source: str) -> None:
    """Refuse what makes wgpu-native abort the process or cut the source instead of reporting an error.

    Raises:
        RuntimeFailure: a NUL, or nesting or statements beyond what the compiler emits.
    """
    hint = "compile the model again with webgpu-compile"
    if "\0" in source:
        raise RuntimeFailure(name, "contains a NUL character", hint)
    code = _COMMENT.sub("", source)
    if _computes_with_overrides(code):
        raise RuntimeFailure(name, "computes with overrides outside of functions", hint)
    depth = terms = 0
    for character in code:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in "+-*/%&|^<>=!~":
            terms += 1
        if character in ";{}":
            terms = 0
        if depth > MAX_NESTING or terms > MAX_TERMS:
            raise RuntimeFailure(name, "is nested too deeply or has too long a statement", hint)


def _computes_with_overrides(code: str) -> bool:
    """Whether overrides are more than numbers in functions and sizes of arrays: naga 29 may abort at that."""
    names = "|".join(_OVERRIDE.findall(code))
    plain = _PLAIN_OVERRIDE.findall(code)
    if len(re.findall(r"\boverride\b", code)) > len(plain):
        return True
    inside = rf"^(?:const|var)\b.*\b(?:{names})\b(?!>;[ \t]*$)"
    return bool(names) and re.search(inside, code, re.MULTILINE) is not None


@dataclass(frozen=True, slots=True)
class Module:
    """A WGSL file on the device."""

    name: str
    text: str
    handle: Any


def create_module(device: Any, name: str, source: str) -> Module:
    """The shader module of a WGSL file.

    Raises:
        RuntimeFailure: it does not compile; `detail` shows where.
    """
    check_source(name, source)
    text = for_naga(source)
    with _explained(name, text):
        return Module(name, text, device.create_shader_module(label=name, code=text))


def create_pipeline(
    device: Any,
    module: Module,
    layout: Any,
    entry: str = "main",
    constants: Mapping[str, float] | None = None,
) -> Any:
    """A compute pipeline for an entry point of `module`, with values of its overrides and a layout.

    Raises:
        RuntimeFailure: there is no such entry point or override, or it does not fit the layout.
    """
    constants = constants or {}
    overrides = set(_OVERRIDE.findall(_COMMENT.sub("", module.text)))
    for name in constants:  # wgpu-native takes any name
        if name not in overrides:
            hint = "compile the model again with webgpu-compile"
            raise RuntimeFailure(f"shaders/{module.name}", f"has no override {name!r}", hint)
    stage = {"module": module.handle, "entry_point": entry, "constants": constants}
    with _explained(module.name, module.text):
        return device.create_compute_pipeline(label=module.name, layout=layout, compute=stage)


@contextmanager
def _explained(name: str, text: str) -> Iterator[None]:
    try:
        yield
    except (wgpu.GPUError, RuntimeError) as error:
        message = str(error)
        raise RuntimeFailure(
            f"shaders/{name}",
            f"does not compile on this device: {summary(message)}",
            "report it with the lines below, or force another variant",
            excerpt(text, message),
        ) from None


def summary(message: str) -> str:
    """The line of wgpu's message that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("Shader '") and " error" in line:
            return line.partition(":")[2].strip() or line
    for line in lines:
        if line.startswith("error:"):
            return line.removeprefix("error:").strip()
    return lines[-1] if lines else "no message"


def excerpt(source: str, message: str) -> str:
    """The source lines around the place that `message` names, numbered; `message` if it names none."""
    match = _POSITION.search(message)
    if match is None:
        return message.strip()
    at = int(match[1])
    lines = source.splitlines()
    first, last = max(1, at - CONTEXT_LINES), min(len(lines), at + CONTEXT_LINES)
    return "\n".join(
        f"{'>' if number == at else ' '} {number:4} | {lines[number - 1]}"
        for number in range(first, last + 1)
    )
