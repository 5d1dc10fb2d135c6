"""What a kernel must move and compute, for the report and details.json: bytes, and operations.

It is what a kernel needs when the cache holds `depth` positions: of a table read by row only those rows, of a
cache the visible part, or what is appended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..program import Access, Binding, Constant, Kernel, Program, Role
from ..schedule import writes_of

_BY_LENGTH = ("k_cache", "v_cache", "softmax", "sums")  # what is read of these depends on the length

_CACHES = ("k_cache", "v_cache")
_PARTIALS = ("softmax", "sums")  # of decode attention: one slice per visible split of the cache


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of weights and of KV cache, bytes of activations (which mostly stay in the GPU's caches), and
    operations: two per multiply-accumulate."""

    weights: int = 0
    cache: int = 0
    activations: int = 0
    operations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weights + other.weights,
            self.cache + other.cache,
            self.activations + other.activations,
            self.operations + other.operations,
        )

    @property
    def memory(self) -> int:
        """Bytes that no cache can spare: every weight and every visible position, once."""
        return self.weights + self.cache

    @property
    def moved(self) -> int:
        """All bytes, activations included."""
        return self.memory + self.activations


def kernel_costs(program: Program, depth: int) -> tuple[Cost, ...]:
    """The cost of each kernel of a replay after which the cache holds `depth` positions."""
    writers = _writers(program)
    return tuple(_kernel_cost(program, kernel, depth, writers) for kernel in program.kernels)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a kernel reads and writes; `cache` of the former are there once the sequence is long."""

    reads: int
    writes: int
    cache: int


def kernel_traffic(program: Program, depth: int) -> tuple[Traffic, ...]:
    """What each kernel of a replay moves after which the cache holds `depth` positions."""
    writers = _writers(program)
    found = []
    for kernel in program.kernels:
        moved = [(each, _moved(program, kernel, each, depth, writers)) for each in kernel.bindings]
        reads = [(each.variable, nbytes) for each, nbytes in moved if each.access is Access.READ]
        found.append(
            Traffic(
                sum(nbytes for _, nbytes in reads),
                sum(nbytes for each, nbytes in moved if each.access is Access.READ_WRITE),
                sum(nbytes for variable, nbytes in reads if variable in _BY_LENGTH),
            )
        )
    return tuple(found)


def _writers(program: Program) -> Counter[str]:
    """How many kernels write each tensor: those that write it in parts (a split LM head) share its bytes."""
    return Counter(name for kernel in program.kernels for name in writes_of(kernel))


def _moved(program: Program, kernel: Kernel, binding: Binding, depth: int, writers: Counter[str]) -> int:
    """Bytes of a tensor that a kernel touches; of the sequence words and token ids, a few, none."""
    tensor = program.tensors[binding.tensor]
    if tensor.role is Role.STATE and binding.variable not in _CACHES:
        return 0
    part, whole = _share(program, binding, dict(kernel.constants), depth)
    shared = tensor.role is not Role.STATE and binding.access is Access.READ_WRITE
    return tensor.nbytes * min(part, whole) // whole // (writers[tensor.name] if shared else 1)


def _kernel_cost(program: Program, kernel: Kernel, depth: int, writers: Counter[str]) -> Cost:
    constants = dict(kernel.constants)
    weights = cache = activations = 0
    for binding in kernel.bindings:
        tensor = program.tensors[binding.tensor]
        nbytes = _moved(program, kernel, binding, depth, writers)
        if tensor.role is Role.WEIGHT:
            weights += nbytes
        elif binding.variable in _CACHES:
            cache += nbytes
        else:
            activations += nbytes
    return Cost(weights, cache, activations, _operations(program, kernel, constants, depth))


def _share(program: Program, binding: Binding, constants: dict[str, Constant], depth: int) -> tuple[int, int]:
    """(part, whole): how much of a tensor a kernel touches."""
    tensor = program.tensors[binding.tensor]
    if "n_ids" in constants and (binding.variable.startswith("table") or tensor.role is Role.WEIGHT):
        return _number(constants, "n_ids"), _number(constants, "n_rows")
    if binding.variable == "rope":  # cosines and sines by position
        return program.rows, max(tensor.shape[0] // 2, 1)
    if binding.variable in _CACHES:
        appended = binding.access is Access.READ_WRITE
        return program.rows if appended else _visible(constants, depth), _number(constants, "capacity")
    if binding.variable in _PARTIALS and "n_splits" in constants:
        n_splits = _number(constants, "n_splits")
        return min(-(-_visible(constants, depth) // _number(constants, "tile")), n_splits), n_splits
    return 1, 1


def _operations(program: Program, kernel: Kernel, constants: dict[str, Constant], depth: int) -> int:
    """Two per multiply-accumulate; `work` of attention is for a full cache."""
    if not kernel.template.startswith("attention") or "capacity" not in constants:
        return 2 * kernel.work
    capacity = _number(constants, "capacity")
    whole = _visible(constants, capacity) if "n_splits" in constants else capacity
    # Rows of a chunk see the cache up to themselves: on average half a chunk less than the last one.
    visible = _visible(constants, max(depth - (program.rows - 1) // 2, 1))
    return 2 * kernel.work * min(visible, whole) // whole


def _visible(constants: dict[str, Constant], depth: int) -> int:
    """Positions of the cache that a query sees: all of them, or a sliding window."""
    return min(depth, _number(constants, "window") or depth)


def _number(constants: dict[str, Constant], name: str) -> int:
    value = constants.get(name, 0)
    return value if isinstance(value, int) else 0
