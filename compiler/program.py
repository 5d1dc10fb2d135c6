"""The program: kernels over tensors, frozen from lowering onwards.

`lowering/` makes it from the graph, `schedule.py` and `plan.py` order it and place it in memory,
`emit/` writes it down. Nothing here knows ONNX or WGSL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod


class DType(StrEnum):
    """Element types in GPU storage. ONNX int64 and bool are `I32` and `U32` here; nibbles are `U8` pairs."""

    F32 = "f32"
    F16 = "f16"
    I32 = "i32"
    U32 = "u32"
    U8 = "u8"
    I8 = "i8"

    @property
    def nbytes(self) -> int:
        return {"f32": 4, "f16": 2, "i32": 4, "u32": 4, "u8": 1, "i8": 1}[self.value]


class Role(StrEnum):
    """Who writes a tensor, and how long it lives."""

    WEIGHT = "weight"  # never written after loading
    STATE = "state"  # survives between programs: KV cache, sequence words, tokens
    INPUT = "input"  # written by the caller before a run
    OUTPUT = "output"  # read by the caller after a run
    ACTIVATION = "activation"  # lives between two kernels of one program


class Access(StrEnum):
    """How a kernel binds a tensor; WebGPU has no write-only storage buffer."""

    READ = "read"
    READ_WRITE = "read_write"

    @property
    def letter(self) -> str:
        """How the manifest says it."""
        return {"read": "r", "read_write": "w"}[self.value]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in GPU memory: C-contiguous, no holes.

    `name` is unique in the program; it is the ONNX value's name where there is one.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: Role

    @property
    def nbytes(self) -> int:
        """Size in bytes, rounded up to the 4 that WebGPU bindings need."""
        return (prod(self.shape) * self.dtype.nbytes + 3) // 4 * 4

    def text(self) -> str:
        return f"{self.role} {self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of one ONNX initializer, by the key under which the importer can map it."""

    initializer: str


@dataclass(frozen=True, slots=True)
class Weight:
    """How a weight tensor is made from the model's initializers.

    `layout` names a function of `weights.py`; `rows` selects a range of rows of each source (a tensor over
    the binding limit is split into several weights); `fill` holds further parameters of the layout.
    """

    tensor: Tensor
    layout: str
    sources: tuple[Source, ...]
    rows: tuple[int, int] | None = None
    fill: tuple[tuple[str, int | float], ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """One storage buffer of a kernel: `variable` is its name in WGSL, `tensor` what is bound."""

    variable: str
    tensor: str
    access: Access = Access.READ


@dataclass(frozen=True, slots=True)
class IndirectGrid:
    """A grid read from GPU memory: three u32 at `offset` bytes in `tensor`."""

    tensor: str
    offset: int = 0


Constant = int | float | str | bool | tuple[str, ...]
Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One dispatch: a template, the numbers it is rendered with, what it binds, how big it runs.

    `workgroup_nbytes` is the workgroup memory of the rendered shader; `work` counts
    multiply-accumulates for the reports. `variables` maps binding names to WGSL element types.
    """

    name: str
    template: str
    workgroup: Grid
    grid: Grid | IndirectGrid
    bindings: tuple[Binding, ...]
    constants: tuple[tuple[str, Constant], ...]
    nodes: tuple[str, ...]
    workgroup_nbytes: int = 0
    work: int = 0
    worst_grid: Grid | None = None  # for an indirect grid: the bound that the plan was made for

    def text(self) -> str:
        grid = self.grid if isinstance(self.grid, tuple) else f"indirect {self.grid.tensor}"
        lines = [f"{self.name}: {self.template} grid={grid} workgroup={self.workgroup}"]
        lines += [f"    {b.access:10} {b.variable} = {b.tensor}" for b in self.bindings]
        lines += [f"    {key} = {value}" for key, value in self.constants]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Program:
    """A static schedule: `decode`, `prefill_64`, `run`, …

    `rows` is the number of sequence positions one replay processes (0 where the model has no sequence).
    """

    name: str
    rows: int
    kernels: tuple[Kernel, ...]
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Weight]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        head = f"program {self.name} rows={self.rows}"
        tensors = (self.tensors[name].text() for name in sorted(self.tensors))
        return "\n".join([head, *tensors, *(kernel.text() for kernel in self.kernels)]) + "\n"
