"""Programs as the manifest has them: kernels and ranges by number, and once for all variants.

Two variants usually run the same steps with other shaders. Such a program is written once; a step names a
kernel, and each variant says which shader the kernel is and over which grid. A program whose steps differ is
each variant's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..plan import Place, Plan, ProgramPlan
from ..program import IndirectGrid, Kernel
from .shaders import ShaderSet

Json = dict[str, Any]
Ports = Callable[[ProgramPlan], tuple[list[Json], list[Json]]]
Launch = tuple[int, tuple[int, ...] | int]  # shader, and a grid or the range that holds it


class Schedules:
    """The programs of a plan, numbered. `ports` gives the inputs and outputs of a program."""

    def __init__(self, plan: Plan, shaders: ShaderSet, ports: Ports) -> None:
        self._shaders = shaders
        self._ports = ports
        self._variants = tuple(plan.variants)
        self._ranges: dict[tuple[int, int, int], int] = {}
        self._kernels: dict[tuple[str, tuple[Launch | None, ...]], int] = {}
        self._shared: dict[str, Json] = {}
        self._own: dict[str, dict[str, Json]] = {variant: {} for variant in self._variants}
        names = dict.fromkeys(p.program.name for programs in plan.variants.values() for p in programs)
        for name in names:
            users = {
                v: p for v, programs in plan.variants.items() for p in programs if p.program.name == name
            }
            signatures = {variant: self._signature(planned) for variant, planned in users.items()}
            if len(users) == len(self._variants):  # most run the first one's form
                common = signatures[self._variants[0]]
                alike = {v: planned for v, planned in users.items() if signatures[v] == common}
                self._shared[name] = self._program(alike)
                users = {v: planned for v, planned in users.items() if v not in alike}
            for variant, planned in users.items():
                self._own[variant][name] = self._program({variant: planned})

    def shared(self) -> dict[str, Json]:
        """The programs that variants share, by name; some may have another form of their own."""
        return self._shared

    def own(self, variant: str) -> dict[str, Json]:
        """The programs that `variant` has otherwise, or alone."""
        return self._own[variant]

    def kernels(self) -> list[str]:
        """Their names, by number."""
        return [name for name, _ in self._kernels]

    def ranges(self) -> list[list[int]]:
        """[buffer, offset, nbytes], by number."""
        return [list(each) for each in self._ranges]

    def launches(self, variant: str) -> list[list[Any] | None]:
        """[shader, grid] of each kernel, by number; None for those that `variant` does not run."""
        at = self._variants.index(variant)
        found = (launches[at] for _, launches in self._kernels)
        return [
            None if each is None else [each[0], list(each[1]) if isinstance(each[1], tuple) else each[1]]
            for each in found
        ]

    def _signature(self, planned: ProgramPlan) -> str:
        """What a program does in which memory, whichever shaders it does it with."""
        steps = [(kernel.name, _places(planned, kernel)) for kernel in planned.program.kernels]
        return repr((self._ports(planned), steps))

    def _program(self, users: Mapping[str, ProgramPlan]) -> Json:
        planned = next(iter(users.values()))
        inputs, outputs = self._ports(planned)
        document: Json = {"rows": planned.program.rows}
        if inputs:
            document["inputs"] = inputs
        if outputs:
            document["outputs"] = outputs
        document["steps"] = [self._step(users, number) for number in range(len(planned.program.kernels))]
        return document

    def _step(self, users: Mapping[str, ProgramPlan], number: int) -> list[int]:
        planned = next(iter(users.values()))
        kernel = planned.program.kernels[number]
        launches = tuple(self._launch(v, users[v], number) if v in users else None for v in self._variants)
        index = self._kernels.setdefault((kernel.name, launches), len(self._kernels))
        return [index, *(self._range(place) for place in _places(planned, kernel))]

    def _launch(self, variant: str, planned: ProgramPlan, number: int) -> Launch:
        kernel, program = planned.program.kernels[number], planned.program
        shader = self._shaders.index[variant, kernel.name, program.name, number]
        if not isinstance(kernel.grid, IndirectGrid):
            return shader, kernel.grid
        place = planned.places[kernel.grid.tensor]
        return shader, self._range(Place(place.buffer, place.offset + kernel.grid.offset, 12))

    def _range(self, place: Place) -> int:
        return self._ranges.setdefault((place.buffer, place.offset, place.nbytes), len(self._ranges))


def _places(planned: ProgramPlan, kernel: Kernel) -> tuple[Place, ...]:
    return tuple(planned.places[binding.tensor] for binding in kernel.bindings)
