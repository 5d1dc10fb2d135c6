"""Values that depend on the sequence length: affine expressions, one comparison, tensors of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..importer.dims import PAST, SEQUENCE, TOTAL


@dataclass(frozen=True, slots=True)
class Affine:
    """`constant + Σ factor · symbol`."""

    constant: int
    terms: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Affine) -> Affine:
        factors = dict(self.terms)
        for symbol, factor in other.terms:
            factors[symbol] = factors.get(symbol, 0) + factor
        terms = tuple(sorted((symbol, factor) for symbol, factor in factors.items() if factor))
        return Affine(self.constant + other.constant, terms)

    def times(self, factor: int) -> Affine:
        terms = tuple((symbol, own * factor) for symbol, own in self.terms) if factor else ()
        return Affine(self.constant * factor, terms)

    def text(self) -> str:
        parts = [symbol if factor == 1 else f"{factor}·{symbol}" for symbol, factor in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")


@dataclass(frozen=True, slots=True)
class Greater:
    """Whether `total_sequence_length > threshold`."""

    threshold: int

    def text(self) -> str:
        return f"{TOTAL} > {self.threshold}"


@dataclass(frozen=True, slots=True)
class Ones:
    """A tensor of ones whose shape depends on the sequence length: the attention mask."""

    shape: tuple[Affine, ...]


@dataclass(frozen=True, slots=True)
class Symbolic:
    """A small tensor of known expressions, in C order."""

    shape: tuple[int, ...]
    elements: tuple[Affine | Greater, ...]


Value = Symbolic | Ones
Known = dict[int, Value]  # by id of the tensor
TOTAL_LENGTH = Affine(0, ((TOTAL, 1),))
SEQLENS = Affine(-1, ((TOTAL, 1),))


def dimension(dim: int | str) -> Affine:
    """A dimension as an expression; the past is what is not new."""
    if isinstance(dim, int):
        return Affine(dim)
    if dim == PAST:
        return Affine(0, ((SEQUENCE, -1), (TOTAL, 1)))
    return Affine(0, ((dim, 1),))
