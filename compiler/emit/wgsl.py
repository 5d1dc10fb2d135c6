"""Jinja templates to WGSL one would have written by hand.

A template sees the kernel's constants as names, the target's `f16` and `subgroups`, and

* `buffer("x", "array<vec4<f32>>")` — declares the kernel's binding `x` (its index and access are known);
* `workgroup_size` — the numbers for `@workgroup_size(...)`;
* `{% include "sequence.wgsl.j2" %}` and the macros beside it.

`enable` directives are added for what the text uses. Undefined names are errors, and so is a binding
that the text does not declare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from textwrap import TextWrapper

import jinja2

from ..program import Kernel
from ..target import Target
from .trim import WIDTH, Paragraph, reached, written

_VECTOR = re.compile(r"\b(vec[234]|mat[234]x[234])<(f32|u32|i32|f16)>")
_SHORT = {"f32": "f", "u32": "u", "i32": "i", "f16": "h"}
"""WGSL's own names of vectors and matrices: vec4f is vec4<f32>."""
_UNSIGNED = re.compile(
    r"(?:(?<=[\w)\]] [-+*/%&|^<>] )|(?<=[\w)\]] [-+*/%&|^<>=!]= )|(?<=[\w)\]] (?:<<|>>) )|(?<=\[))(\d+)u\b"
    r"|(?<![\w.])(\d+)u(?= (?:[-+*/%&|^<>]|[<>=!]=) [A-Za-z(])"
    r"|(?<=vec[234]u\()(\d+)u(?=\))"
)
"""Whole numbers that are u32 without saying so: beside what is one, and indices. Not in front of a shift."""
_NUMBER = re.compile(r"[0-9]{1,6}(?![0-9])")
_LINES = TextWrapper(
    WIDTH,
    initial_indent="//   ",
    subsequent_indent="//     ",
    break_long_words=False,
    break_on_hyphens=False,
)
_LINE_BREAKS = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]|\*/")


@cache
def _environment() -> jinja2.Environment:
    package = files(__package__.removesuffix("compiler.emit") + "templates")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (package / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def render(kernel: Kernel, target: Target) -> str:
    """The WGSL of `kernel` for `target`, without the header comment."""
    return finished(written(declarations(kernel, target)))


def declarations(kernel: Kernel, target: Target) -> list[Paragraph]:
    """What the WGSL of `kernel` for `target` declares."""
    declared: set[str] = set()
    bindings = {binding.variable: (i, binding) for i, binding in enumerate(kernel.bindings)}

    def buffer(variable: str, wgsl_type: str) -> str:
        index, binding = bindings[variable]
        declared.add(variable)
        return f"@group(0) @binding({index}) var<storage, {binding.access}> {variable}: {wgsl_type};"

    text = (
        _environment()
        .get_template(kernel.template)
        .render(
            dict(kernel.constants),
            buffer=buffer,
            has=bindings.__contains__,
            f16=target.f16,
            subgroups=target.subgroups,
            workgroup_size=re.sub(r"(, 1)+$", "", ", ".join(map(str, kernel.workgroup))),
            n_threads=kernel.workgroup[0] * kernel.workgroup[1] * kernel.workgroup[2],
        )
    )
    if missing := set(bindings) - declared:
        raise ValueError(f"{kernel.template} does not declare {sorted(missing)} of kernel {kernel.name}")
    return reached(shortened(text))


def shortened(text: str) -> str:
    """WGSL with its own short names of types, and without suffixes of numbers that need none."""
    text = _VECTOR.sub(lambda found: found[1] + _SHORT[found[2]], text)
    return _UNSIGNED.sub(lambda found: found[1] or found[2] or found[3], text)


def finished(text: str) -> str:
    """Declarations as a module: no runs of empty lines, and `enable` for what the text uses."""
    body = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    enables = [name for name in ("f16", "subgroups") if _uses(name, body)]
    return "".join(f"enable {name};\n" for name in enables) + ("\n" if enables else "") + body


def features_of(wgsl: str) -> tuple[str, ...]:
    """The WebGPU features that a shader needs, by its `enable` directives."""
    names = {"f16": "shader-f16", "subgroups": "subgroups"}
    return tuple(feature for name, feature in names.items() if f"enable {name};" in wgsl)


def header(kernels: Iterable[Kernel], limit: int = 40) -> str:
    """The comment above a shader: what it implements. Names come from the model and are made harmless.

    layers.{0..2}/attn/o_proj, layers.{0..2}/mlp/down_proj  =>  layers.{0..2}: attn/o_proj, mlp/down_proj
    """
    nodes = folded(dict.fromkeys(node for kernel in kernels for node in kernel.nodes))
    layers: dict[str, list[str]] = {}
    for node in map(comment, nodes[:limit]):
        layer, _, name = node.rpartition("}/")
        layers.setdefault(layer, []).append(name)
    lines = []
    for layer, names in layers.items():
        lines += _LINES.wrap((f"{layer}}}: " if layer else "") + ", ".join(names))
    if len(nodes) > limit:
        lines.append(f"//   … and {len(nodes) - limit} more (webgpu-inspect lists them)")
    return "\n".join(["// ONNX nodes:", *lines]) + "\n" if lines else ""


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in one number, such as the layer's, as one.

    layers.0/down_proj, layers.1/down_proj, layers.2/down_proj  =>  layers.{0..2}/down_proj
    """
    numbers: dict[tuple[str, str], list[int]] = {}  # by what is before and behind the number
    places: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        found = [m for m in _NUMBER.finditer(name) if m[0] == str(int(m[0]))]
        places[name] = [(name[: m.start()], name[m.end() :]) for m in found]
        for place, m in zip(places[name], found, strict=True):
            numbers.setdefault(place, []).append(int(m[0]))
    result: dict[str, None] = {}
    for name, candidates in places.items():
        best = max(candidates, key=lambda place: len(numbers[place]), default=None)
        if best is None or len(numbers[best]) == 1:
            result[name] = None
        else:
            result[f"{best[0]}{{{_ranges(sorted(numbers[best]))}}}{best[1]}"] = None
    return list(result)


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5  =>  0..2,5"""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def comment(text: str) -> str:
    """A model's name as part of a line comment: no character may end the comment, or the file."""
    return _LINE_BREAKS.sub("?", text)[:200]


def _uses(feature: str, body: str) -> bool:
    code = re.sub(r"//[^\n]*", "", body)
    pattern = {
        "f16": r"\bf16\b|\b(?:vec|mat)[234](?:x[234])?h\b",
        "subgroups": r"\bsubgroup[A-Z_]\w*|\bsubgroup_\w+",
    }[feature]
    return re.search(pattern, code) is not None
