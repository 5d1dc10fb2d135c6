"""`--tune`: kernel shapes chosen by measurement on the GPU of this machine, as a variant of their own.

Every field of `Shapes` is tried by itself, with the others as the table has them. The model is lowered anew
for each value, which shows the kernels that it changes; the others are not measured again. The choice depends
on the measured times alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .emit.wgsl import render
from .errors import CompileError
from .measuring import AdapterFacts, Measurer, Sample, Slot
from .program import Access, IndirectGrid, Kernel, Program, Role
from .sequence import N_WORDS, SEQUENCE, TOKENS, WORDS
from .shapes import Shapes, neighbours, shapes_for
from .target import SPEC_LIMITS, Adapter, Target

DEPTH = 1024
"""Positions in the cache while attention is timed, if it holds as many."""

MARGIN = 0.01
"""Part of the programs' time that another value has to save: less is noise."""

Lower = Callable[[Target], Sequence[Program]]
"""The programs that are to be fast, lowered for a target."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One value of one field, and the seconds that the programs take with it; None where it cannot run."""

    field: str
    value: object
    seconds: float | None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """The variant that was found, everything that was tried, and the programs' seconds before and after."""

    target: Target
    adapter: AdapterFacts
    trials: tuple[Trial, ...]
    before: float
    after: float


def tune(
    measurer: Measurer,
    lower: Lower,
    targets: Iterable[Target],
    capacity: int,
    tell: Callable[[int, int], None],
) -> Tuning:
    """Choose shapes for the measurer's adapter, starting from its vendor's row of the table.

    Args:
        targets: the variants to be emitted; the first that the adapter can run is the one to be tuned.
        capacity: positions of the KV cache.
        tell: called with (values tried, values to try).

    Raises:
        CompileError: the adapter runs none of the variants.
    """
    adapter = measurer.adapter
    base = tuned_target(adapter, targets)
    clock = _Clock(measurer, capacity)

    def seconds_with(shapes: Shapes) -> float | None:
        target = replace(base, shapes=shapes)
        return clock.seconds(lower(target), target)

    before = seconds_with(base.shapes)
    if before is None:
        raise CompileError(
            "--tune", f"{adapter.device} does not run the kernels", "compile without --tune, and report it"
        )
    candidates = list(neighbours(base.shapes))
    tried = {
        field.name: [Trial(field.name, getattr(base.shapes, field.name), before)] for field in fields(Shapes)
    }
    for done, (field, shapes) in enumerate(candidates):
        tell(done, len(candidates))
        trial = Trial(field, getattr(shapes, field), seconds_with(shapes))
        # To the last bit the same time: the same kernels, since equal ones are measured once.
        if all(trial.seconds != other.seconds for other in tried[field]):
            tried[field].append(trial)
    tell(len(candidates), len(candidates))
    chosen = {field: choose(trials) for field, trials in tried.items()}
    shapes = replace(base.shapes, **{field: trial.value for field, trial in chosen.items()})  # type: ignore[arg-type]
    after = seconds_with(shapes)
    return Tuning(
        replace(base, shapes=shapes),
        adapter,
        tuple(replace(t, chosen=t is chosen[t.field]) for trials in tried.values() for t in trials),
        before,
        before if after is None else after,
    )


def choose(trials: Sequence[Trial]) -> Trial:
    """The fastest; the first, which is the table's, unless another saves more than `MARGIN`."""
    first = trials[0]
    assert first.seconds is not None
    best = min((t for t in trials if t.seconds is not None), key=lambda t: t.seconds or 0.0)
    assert best.seconds is not None
    return best if best.seconds < first.seconds * (1 - MARGIN) else first


def tuned_target(adapter: AdapterFacts, targets: Iterable[Target]) -> Target:
    """The first of `targets` that the adapter can run, made for it alone, with its vendor's shapes.

    Raises:
        CompileError: it can run none.
    """
    for target in targets:
        if set(target.features) <= set(adapter.features):
            name = f"tuned-{_word(adapter.vendor)}-{_model(adapter)}"
            wanted = Adapter(adapter.vendor, adapter.device)
            return replace(target, name=name, adapter=wanted, shapes=shapes_for(adapter.vendor))
    raise CompileError("--tune", f"{adapter.device} runs none of the variants", "add portable to --variants")


def _model(adapter: AdapterFacts) -> str:
    """ "NVIDIA H200"  =>  "h200" """
    name = _word(adapter.device.partition("(")[0]).removeprefix(f"{_word(adapter.vendor)}-")
    return name[:40].strip("-") or "gpu"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class _Clock:
    """Times programs, each distinct kernel once."""

    def __init__(self, measurer: Measurer, capacity: int) -> None:
        self._measurer = measurer
        self._words = _sequence_words(min(DEPTH, capacity - 1))
        self._times: dict[Sample, float | None] = {}
        self._texts: dict[Any, str] = {}

    def seconds(self, programs: Iterable[Program], target: Target) -> float | None:
        """The sum over all dispatches, each timed by itself; None where one of them cannot run."""
        total = 0.0
        for program in programs:
            for kernel in program.kernels:
                if kernel.workgroup_nbytes > SPEC_LIMITS["max-compute-workgroup-storage-size"]:
                    return None
                sample = self._sample(kernel, program, target)
                if sample not in self._times:
                    self._times[sample] = self._measurer.seconds(sample)
                seconds = self._times[sample]
                if seconds is None:
                    return None
                total += seconds
        return total

    def _sample(self, kernel: Kernel, program: Program, target: Target) -> Sample:
        signature = (
            kernel.template,
            kernel.workgroup,
            kernel.constants,
            tuple((binding.variable, binding.access) for binding in kernel.bindings),
        )
        if signature not in self._texts:
            self._texts[signature] = render(kernel, target)
        slots = []
        for binding in kernel.bindings:
            tensor = program.tensors[binding.tensor]
            words = self._words if tensor.name == SEQUENCE else ()
            cold = (
                binding.access is Access.READ
                and tensor.role in (Role.WEIGHT, Role.STATE)
                and tensor.name not in (SEQUENCE, TOKENS)
            )
            slots.append(Slot(binding.access.letter, tensor.nbytes, cold, words))
        grid = kernel.worst_grid if isinstance(kernel.grid, IndirectGrid) else kernel.grid
        assert grid is not None
        return Sample(self._texts[signature], grid, tuple(slots))


def _sequence_words(past: int) -> tuple[int, ...]:
    """The state of a sequence that has `past` positions in the cache and goes on."""
    values = {
        "past_length": past,
        "length": 1,
        "total_length": past + 1,
        "call_length": past + 1,
        "n_tokens": past + 1,
        "limit": 2**30,
    }
    return tuple(values.get(word, 0) for word in WORDS) + (0,) * (N_WORDS - len(WORDS))
