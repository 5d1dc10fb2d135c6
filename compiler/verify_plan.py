"""An independent check of the plan, made of what WebGPU forbids and what would corrupt a result.

It shares no code with `plan.py`: it looks at buffers and byte ranges only. A failure is a bug of the
compiler, so it is an AssertionError with everything needed to find it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .plan import BufferKind, Plan, ProgramPlan
from .program import Access, IndirectGrid, Kernel, Role
from .target import SPEC_LIMITS


def verify(plan: Plan, limits: Mapping[str, int] = SPEC_LIMITS) -> None:
    """Check every step of every program against the checklist below.

    1. a binding lies inside its buffer, at a multiple of 256, within the binding limit;
    2. no buffer is bound both for reading and for writing in one dispatch, nor are two writable ranges
       overlapping;
    3. an activation is read only after it was written in this program, and nothing else wrote to its bytes
       in between;
    4. weights are never written;
    5. workgroups, grids and the number of bindings are within the limits.
    """
    for name, buffer in ((b.name, b) for b in plan.buffers):
        _check(0 < buffer.nbytes <= limits["max-buffer-size"], f"buffer {name} has {buffer.nbytes} bytes")
    for variant, programs in plan.variants.items():
        for program in programs:
            _verify_program(plan, program, limits, f"{variant}/{program.program.name}")


def _verify_program(plan: Plan, planned: ProgramPlan, limits: Mapping[str, int], where: str) -> None:
    contents: dict[int, str] = {}
    for step, kernel in enumerate(planned.program.kernels):
        at = f"{where} step {step} ({kernel.name})"
        _verify_shape(kernel, limits, at)
        access: dict[int, set[Access]] = {}
        writable: list[tuple[int, int, int]] = []
        for binding in kernel.bindings:
            place = planned.places[binding.tensor]
            tensor = planned.program.tensors[binding.tensor]
            buffer = plan.buffers[place.buffer]
            _check(place.offset % 256 == 0, f"{at}: {binding.variable} at offset {place.offset}")
            _check(
                place.offset + place.nbytes <= buffer.nbytes, f"{at}: {binding.variable} past {buffer.name}"
            )
            _check(place.nbytes >= tensor.nbytes, f"{at}: {binding.variable} is bound too short")
            _check(
                place.nbytes <= limits["max-storage-buffer-binding-size"],
                f"{at}: {binding.variable} binds {place.nbytes} bytes",
            )
            access.setdefault(place.buffer, set()).add(binding.access)
            if buffer.kind is BufferKind.ACTIVATION and binding.access is Access.READ:
                held = contents.get(place.buffer)
                _check(
                    held == binding.tensor,
                    f"{at}: {binding.tensor} is read from {buffer.name}, which holds {held}",
                )
            if binding.access is Access.READ_WRITE:
                _check(buffer.kind is not BufferKind.WEIGHTS, f"{at}: writes to {buffer.name}")
                _check(tensor.role is not Role.WEIGHT, f"{at}: writes to weight {tensor.name}")
                for other, start, end in writable:
                    apart = (
                        other != place.buffer or end <= place.offset or place.offset + place.nbytes <= start
                    )
                    _check(apart, f"{at}: two writable ranges of {buffer.name} overlap")
                writable.append((place.buffer, place.offset, place.offset + place.nbytes))
        if isinstance(kernel.grid, IndirectGrid):
            place = planned.places[kernel.grid.tensor]
            _check(plan.buffers[place.buffer].indirect, f"{at}: grid from a buffer that is not for that")
            _check(kernel.grid.offset + 12 <= place.nbytes, f"{at}: grid past the end of its tensor")
            access.setdefault(place.buffer, set()).add(Access.READ)
        for number, kinds in access.items():
            _check(len(kinds) == 1, f"{at}: {plan.buffers[number].name} is both read and written")
        for binding in kernel.bindings:
            place = planned.places[binding.tensor]
            if (
                binding.access is Access.READ_WRITE
                and plan.buffers[place.buffer].kind is BufferKind.ACTIVATION
            ):
                contents[place.buffer] = binding.tensor


def _verify_shape(kernel: Kernel, limits: Mapping[str, int], at: str) -> None:
    n_bindings = len(kernel.bindings)
    _check(n_bindings <= limits["max-storage-buffers-per-shader-stage"], f"{at}: {n_bindings} bindings")
    x, y, z = kernel.workgroup
    _check(
        x * y * z <= limits["max-compute-invocations-per-workgroup"], f"{at}: workgroup {kernel.workgroup}"
    )
    for axis, size in zip("xyz", kernel.workgroup, strict=True):
        _check(
            1 <= size <= limits[f"max-compute-workgroup-size-{axis}"], f"{at}: workgroup {kernel.workgroup}"
        )
    _check(
        kernel.workgroup_nbytes <= limits["max-compute-workgroup-storage-size"],
        f"{at}: {kernel.workgroup_nbytes} bytes of workgroup memory",
    )
    grid = kernel.worst_grid if isinstance(kernel.grid, IndirectGrid) else kernel.grid
    _check(grid is not None, f"{at}: an indirect grid without a bound")
    for size in grid or ():
        _check(1 <= size <= limits["max-compute-workgroups-per-dimension"], f"{at}: grid {grid}")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(f"the plan is wrong: {message}")
