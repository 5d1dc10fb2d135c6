"""Memory: every tensor of every program gets a buffer and an offset, once and for all.

* weights: packed one after another into shards; shard i is GPU buffer i, byte for byte;
* state, inputs and outputs: one buffer each, shared by all programs under their name;
* activations: coloured. Two tensors that live at the same time never share a buffer, so no dispatch ever
  reads and writes one buffer — the rule by which WebGPU forbids it is met by construction.

Lifetimes of a small program, one row a tensor, one column a step:

    x        WR..        buffer 0
    y        .WR.        buffer 1
    z        ..WR        buffer 0     z is born when x is dead
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import networkx as nx

from .program import Program, Role, Tensor, Weight
from .schedule import reads_of, writes_of
from .target import SPEC_LIMITS

ALIGNMENT = 256
"""Bytes: WebGPU's default minimum offset of a storage binding."""

SHARD_NBYTES = SPEC_LIMITS["max-buffer-size"]


class BufferKind(StrEnum):
    WEIGHTS = "weights"
    STATE = "state"
    ACTIVATION = "activation"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Buffer:
    """One GPU buffer."""

    name: str
    nbytes: int
    kind: BufferKind
    indirect: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lives: `nbytes` at `offset` of buffer number `buffer`."""

    buffer: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Lifetime:
    """An activation from the step that first writes it to the last that reads it."""

    tensor: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """One program of one variant with every tensor placed."""

    program: Program
    places: Mapping[str, Place]
    lifetimes: tuple[Lifetime, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of the artifact: buffers, weights by shard, and the programs of each variant."""

    buffers: tuple[Buffer, ...]
    shards: tuple[tuple[Weight, ...], ...]
    variants: Mapping[str, tuple[ProgramPlan, ...]]

    def text(self) -> str:
        lines = [f"{i:4} {b.kind:10} {b.nbytes:12} {b.name}" for i, b in enumerate(self.buffers)]
        for variant, plans in self.variants.items():
            for plan in plans:
                lines.append(f"{variant} {plan.program.name}")
                lines += [
                    f"    {life.first:4}..{life.last:<4} buffer {place.buffer:3} {life.tensor}"
                    for life in plan.lifetimes
                    for place in (plan.places[life.tensor],)
                ]
        return "\n".join(lines) + "\n"


def lifetimes(program: Program) -> tuple[Lifetime, ...]:
    """First write to last use of every activation, in order of birth. Inclusive at both ends."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, kernel in enumerate(program.kernels):
        for name in (*writes_of(kernel), *reads_of(kernel)):
            if program.tensors[name].role is Role.ACTIVATION:
                first.setdefault(name, step)
                last[name] = step
    return tuple(Lifetime(name, first[name], last[name]) for name in first)


def color(program: Program, lives: Sequence[Lifetime]) -> dict[str, int]:
    """A buffer number for every activation such that tensors alive together differ.

    Greedy over the interference graph, largest tensors first, so that big buffers are shared by big tensors.
    """
    graph = nx.Graph()
    graph.add_nodes_from(life.tensor for life in lives)
    for i, a in enumerate(lives):
        for b in lives[i + 1 :]:
            if b.first <= a.last and a.first <= b.last:
                graph.add_edge(a.tensor, b.tensor)
    order = sorted(graph, key=lambda name: (-program.tensors[name].nbytes, name))
    return dict(nx.greedy_color(graph, strategy=lambda *_: order))


def plan(programs: Mapping[str, Sequence[Program]]) -> Plan:
    """Place every tensor of `programs` (a sequence per variant name)."""
    everything = [program for variant in programs.values() for program in variant]
    shards, places = _place_weights(everything)
    buffers = [
        Buffer(f"weights.{i}", sum(_aligned(w.tensor.nbytes) for w in shard), BufferKind.WEIGHTS)
        for i, shard in enumerate(shards)
    ]
    indirect = {k.grid.tensor for p in everything for k in p.kernels if not isinstance(k.grid, tuple)}
    shared = {Role.STATE: BufferKind.STATE, Role.INPUT: BufferKind.INPUT, Role.OUTPUT: BufferKind.OUTPUT}
    sizes: dict[str, tuple[BufferKind, int]] = {}
    for tensor in _tensors(everything):
        if tensor.role in shared:
            size = max(_aligned(tensor.nbytes), sizes.get(tensor.name, (None, 0))[1])
            sizes[tensor.name] = (shared[tensor.role], size)
    index = {}
    for name, (kind, nbytes) in sizes.items():
        index[name] = len(buffers)
        buffers.append(Buffer(name, nbytes, kind, name in indirect))

    colored = {}
    pool: list[int] = []  # bytes of each activation buffer: the largest need over all programs
    used_indirectly: set[int] = set()
    for variant, sequence in programs.items():
        for program in sequence:
            lives = lifetimes(program)
            colors = _by_size(program, color(program, lives))
            colored[variant, program.name] = lives, colors
            for name, c in colors.items():
                pool += [0] * (c + 1 - len(pool))
                pool[c] = max(pool[c], _aligned(program.tensors[name].nbytes))
                if name in indirect:
                    used_indirectly.add(c)
    base = len(buffers)
    buffers += [
        Buffer(f"activations.{i}", nbytes, BufferKind.ACTIVATION, i in used_indirectly)
        for i, nbytes in enumerate(pool)
    ]

    variants: dict[str, tuple[ProgramPlan, ...]] = {}
    for variant, sequence in programs.items():
        plans = []
        for program in sequence:
            lives, colors = colored[variant, program.name]
            placed = {}
            for name, tensor in program.tensors.items():
                if tensor.role is Role.WEIGHT:
                    placed[name] = places[name]
                else:
                    number = base + colors[name] if name in colors else index.get(name)
                    if number is not None:
                        placed[name] = Place(number, 0, tensor.nbytes)
            plans.append(ProgramPlan(program, placed, lives))
        variants[variant] = tuple(plans)
    return Plan(tuple(buffers), shards, variants)


def _by_size(program: Program, colors: dict[str, int]) -> dict[str, int]:
    """Number the colours by the size they need, largest first: programs then share buffers of like size."""
    need: dict[int, int] = {}
    for name, c in colors.items():
        need[c] = max(need.get(c, 0), program.tensors[name].nbytes)
    rank = {c: i for i, c in enumerate(sorted(need, key=lambda c: (-need[c], c)))}
    return {name: rank[c] for name, c in colors.items()}


def _place_weights(
    programs: Iterable[Program],
) -> tuple[tuple[tuple[Weight, ...], ...], dict[str, Place]]:
    """Weights in order of first use, one after another, a new shard before one would grow over its size."""
    shards: list[list[Weight]] = []
    places: dict[str, Place] = {}
    end = SHARD_NBYTES
    for program in programs:
        for kernel in program.kernels:
            for binding in kernel.bindings:
                weight = program.weights.get(binding.tensor)
                if weight is None or binding.tensor in places:
                    continue
                nbytes = weight.tensor.nbytes
                if end + _aligned(nbytes) > SHARD_NBYTES:
                    shards.append([])
                    end = 0
                shards[-1].append(weight)
                places[binding.tensor] = Place(len(shards) - 1, end, nbytes)
                end += _aligned(nbytes)
    return tuple(map(tuple, shards)), places


def _tensors(programs: Iterable[Program]) -> Iterable[Tensor]:
    for program in programs:
        yield from program.tensors.values()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
