"""Numbers and names as the report prints them."""

from __future__ import annotations

from markupsafe import Markup

from ..errors import printable
from .names import bounded

KINDS = {
    "linear": "linear layers",
    "attention": "attention and KV cache",
    "norm": "normalisation",
    "embed": "embedding",
    "sampling": "sampling and sequence",
    "other": "elementwise and data movement",
}
"""Kinds of kernels: the name of their colour in report.css, and what it stands for."""

_TEMPLATES = {
    "linear": "linear",
    "quantize": "linear",
    "attention": "attention",
    "rope_append": "attention",
    "rms_norm": "norm",
    "sample": "sampling",
    "argmax": "sampling",
    "last_token": "sampling",
    "sequence": "sampling",
}


def kind_of(name: str, template: str) -> str:
    """The kind of a kernel, by its template; `embed` is a gather by position."""
    if name == "embed":
        return "embed"
    return next((kind for prefix, kind in _TEMPLATES.items() if template.startswith(prefix)), "other")


def harmless(value: object) -> object:
    """Model text on a page: no control or bidirectional character, no end of the world's longest name.

    Escaping for HTML is the template's autoescape; this is for what a browser would still act on.
    """
    if isinstance(value, str) and not isinstance(value, Markup):
        return bounded(printable(value))
    return value


def size(nbytes: float) -> str:
    """1536  =>  1.5 KiB"""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def count(n: float) -> str:
    """1500000  =>  1.50 M"""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= limit:
            return f"{n / limit:.2f} {unit}"
    return f"{n:.0f}"


def rate(per_second: float) -> str:
    """Tokens per second to about three digits: 7.42, 74.2, 742, 7,420."""
    digits = 2 if per_second < 10 else 1 if per_second < 100 else 0
    rounded = round(per_second, -1) if per_second >= 10_000 else per_second
    return f"{rounded:,.{digits}f}"


def share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent >= 0.1 or not part else "< 0.1 %"


def plural(n: int, word: str) -> str:
    """1 dispatch, 2 dispatches"""
    ending = "" if n == 1 else "es" if word.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{n:,} {word}{ending}"
