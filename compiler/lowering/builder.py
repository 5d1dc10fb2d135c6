"""From the device graph to kernels: what a lowering function sees, and who calls it.

A lowering function is registered for an operator and gets an `Op`: the node with its tensors. It returns
kernels; the `Builder` collects them, with the tensors and weights they name, into a `Program`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..importer.external import storage_key
from ..program import (
    Access,
    Binding,
    Constant,
    DType,
    Grid,
    IndirectGrid,
    Kernel,
    Program,
    Role,
    Source,
    Tensor,
    Weight,
)
from ..sequence import N_WORDS, SEQUENCE, TOKENS
from ..target import SPEC_LIMITS, Target

STORAGE = {
    "float32": DType.F32,
    "float16": DType.F32,  # activations are kept and computed in f32
    "int64": DType.I32,
    "int32": DType.I32,
    "bool": DType.U32,
    "uint8": DType.U8,
    "int8": DType.I8,
}
"""Element type on the GPU of an ONNX value that a kernel computes."""

WEIGHT_STORAGE = {**STORAGE, "float16": DType.F16}
"""Element type on the GPU of an ONNX initializer: as stored in the model."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What is fixed about the sequence: the cache capacity and who keeps its length."""

    capacity: int
    vocab_size: int
    token_input: str
    caches: tuple[tuple[str, str], ...]  # (past input, present output) pairs that share one state tensor
    logits: str
    driven_by: str = "gpu"
    indirect_attention: bool = False
    most_rows: int = 1  # of the largest chunk


@dataclass(frozen=True, slots=True)
class OpRecord:
    """A registered lowering, with what `docs/ops.md` says of it."""

    op_type: str
    domain: str
    function: Callable[[Op], Iterable[Kernel] | None]
    dtypes: str
    limits: str


OPS: dict[tuple[str, str], OpRecord] = {}

_DEFAULT_DOMAINS = ("", "ai.onnx")


def lower(
    *op_types: str, domain: str = "", dtypes: str = "float32, float16", limits: str = ""
) -> Callable[[Callable[[Op], Iterable[Kernel] | None]], Callable[[Op], Iterable[Kernel] | None]]:
    """Register a lowering for operators of a domain. `dtypes` and `limits` go into `docs/ops.md`."""

    def register(
        function: Callable[[Op], Iterable[Kernel] | None],
    ) -> Callable[[Op], Iterable[Kernel] | None]:
        for op_type in op_types:
            OPS[domain, op_type] = OpRecord(op_type, domain, function, dtypes, limits)
        return function

    return register


def record_of(node: gs.Node) -> OpRecord | None:
    """The lowering registered for a node, by domain and operator."""
    domain = "" if node.domain in (None, *_DEFAULT_DOMAINS) else node.domain
    return OPS.get((domain, node.op))


class Op:
    """A node being lowered: its attributes, inputs and outputs as GPU tensors."""

    def __init__(self, node: gs.Node, builder: Builder) -> None:
        self.node = node
        self.builder = builder

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the model's nodes that this one stands for: itself, or what a fusion replaced."""
        return tuple(self.node.attrs.get("sources") or (self.name,))

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def value(self, index: int) -> gs.Tensor | None:
        """Input `index`, or None where it is absent or empty."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) and inputs[index].name else None

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a small constant input; None where it is absent or computed."""
        value = self.value(index)
        return np.asarray(value.values) if isinstance(value, gs.Constant) else None

    def shape(self, index: int) -> tuple[int, ...]:
        value = self.value(index)
        if value is None:
            raise self.error(f"has no input {index}", "give the model that input")
        return self.builder.shape_of(value)

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.builder.shape_of(self.node.outputs[index])

    def read(self, index: int) -> Tensor:
        """Input `index` on the GPU; an initializer becomes a weight, stored as in the model."""
        value = self.value(index)
        if value is None:
            raise self.error(f"has no input {index}", "give the model that input")
        return self.builder.read(value)

    def initializer(self, index: int) -> str:
        """The name of the bytes of constant input `index`.

        Raises:
            CompileError: the input is computed.
        """
        value = self.value(index)
        if not isinstance(value, gs.Constant):
            raise self.error(f"has a computed input {index}", "make it an initializer of the model")
        return storage_key(value)

    @property
    def sequence(self) -> str | None:
        """The tensor of the sequence words, where the model has a sequence."""
        return SEQUENCE if self.builder.decoder else None

    def has_output(self, index: int) -> bool:
        """Whether anything reads output `index`."""
        outputs = self.node.outputs
        if index >= len(outputs) or not outputs[index].name:
            return False
        return bool(outputs[index].outputs) or outputs[index].name in self.builder.outputs

    def write(self, index: int = 0) -> Tensor:
        """Output `index` on the GPU, to be written by this op's kernels."""
        return self.builder.write(self.node.outputs[index])

    def alias(self, tensor: Tensor, index: int = 0) -> None:
        """Output `index` is `tensor` itself under another shape: no kernel."""
        self.builder.alias(self.node.outputs[index], tensor)

    def scratch(self, suffix: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        """A tensor between two kernels of this op."""
        return self.builder.tensor(f"{self.name}/{suffix}", dtype, shape, Role.ACTIVATION)

    def kernel(
        self,
        template: str,
        *,
        grid: Grid | int | IndirectGrid,
        workgroup: Grid | int,
        bindings: Sequence[Binding],
        constants: Mapping[str, Constant],
        name: str = "",
        work: int = 0,
        workgroup_nbytes: int = 0,
    ) -> Kernel:
        """One kernel of this op. A number as `grid` is folded into two dimensions where it must be."""
        return Kernel(
            name=name or template.removesuffix(".wgsl.j2"),
            template=template,
            workgroup=workgroup if isinstance(workgroup, tuple) else (workgroup, 1, 1),
            grid=fold_grid(grid) if isinstance(grid, int) else grid,
            bindings=tuple(bindings),
            constants=tuple(sorted(constants.items())),
            nodes=self.nodes,
            workgroup_nbytes=workgroup_nbytes,
            work=work,
        )

    def error(self, problem: str, hint: str) -> CompileError:
        return CompileError(f"node {self.name!r} ({self.node.op})", problem, hint)


def fold_grid(n: int) -> Grid:
    """`n` workgroups as (x, y, 1) within 65,535 per dimension; the kernel masks the ones past `n`."""
    limit = SPEC_LIMITS["max-compute-workgroups-per-dimension"]
    if n <= limit:
        return (max(n, 1), 1, 1)
    y = -(-n // limit)
    return (-(-n // y), y, 1)


def split_rows(n_rows: int, row_nbytes: int) -> list[tuple[int, int]]:
    """Row ranges of a table such that each fits the portable binding limit."""
    limit = SPEC_LIMITS["max-storage-buffer-binding-size"] // max(row_nbytes, 1)
    # Ranges start at multiples of 64 rows, so that every range is aligned for every layout.
    per_range = n_rows if n_rows <= limit else limit // 64 * 64
    if per_range == 0:
        raise ValueError(f"one row of {row_nbytes} bytes is over the binding limit")
    return [(start, min(start + per_range, n_rows)) for start in range(0, n_rows, per_range)]


class Builder:
    """Lowers one graph for one number of rows and one target."""

    def __init__(
        self,
        graph: gs.Graph,
        shapes: Mapping[str, tuple[int, ...]],
        target: Target,
        decoder: DecoderShape | None = None,
        rows: int = 0,
    ) -> None:
        self.graph = graph
        self.shapes = shapes
        self.target = target
        self.decoder = decoder
        self.rows = rows
        self.outputs = {value.name for value in graph.outputs}
        self.tensors: dict[str, Tensor] = {}
        self.weights: dict[str, Weight] = {}
        self.aliases: dict[str, str] = {}
        self.kernels: list[Kernel] = []
        if decoder:
            self.tensor(SEQUENCE, DType.U32, (N_WORDS,), Role.STATE)
            self.tensor(TOKENS, DType.I32, (decoder.capacity + 1,), Role.STATE)

    # -- tensors

    def shape_of(self, value: gs.Tensor) -> tuple[int, ...]:
        if isinstance(value, gs.Constant):
            return tuple(int(n) for n in value.shape)
        return self.shapes[value.name]

    def tensor(self, name: str, dtype: DType, shape: tuple[int, ...], role: Role) -> Tensor:
        tensor = Tensor(name, dtype, tuple(int(n) for n in shape), role)
        if self.tensors.setdefault(name, tensor) != tensor:
            raise AssertionError(
                f"tensor {name} declared twice: {tensor.text()}, {self.tensors[name].text()}"
            )
        return tensor

    def read(self, value: gs.Tensor) -> Tensor:
        if isinstance(value, gs.Constant):
            return self.weight(value)
        return self.tensors[self.aliases.get(value.name, value.name)]

    def write(self, value: gs.Tensor) -> Tensor:
        role = Role.OUTPUT if value.name in self.outputs else Role.ACTIVATION
        return self.tensor(value.name, STORAGE[np.dtype(value.dtype).name], self.shape_of(value), role)

    def alias(self, value: gs.Tensor, tensor: Tensor) -> None:
        self.aliases[value.name] = tensor.name

    def weight(
        self,
        constant: gs.Constant,
        layout: str = "copy",
        dtype: DType | None = None,
        shape: tuple[int, ...] | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """The GPU tensor of an initializer. The same bytes in the same layout are one tensor."""
        key = storage_key(constant)
        name = key if layout == "copy" else f"{key}:{layout}"
        shape = shape or tuple(int(n) for n in constant.shape)
        if rows:
            name, shape = f"{name}[{rows[0]}:{rows[1]}]", (rows[1] - rows[0], *shape[1:])
        dtype = dtype or WEIGHT_STORAGE[np.dtype(constant.dtype).name]
        if name in self.weights:
            tensor = self.weights[name].tensor
            self.tensors[name] = tensor
            return tensor
        return self.add_weight(name, layout, dtype, shape, (key,), rows)

    def add_weight(
        self,
        name: str,
        layout: str,
        dtype: DType,
        shape: tuple[int, ...],
        sources: tuple[str, ...],
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        tensor = self.tensor(name, dtype, shape, Role.WEIGHT)
        self.weights[name] = Weight(tensor, layout, tuple(map(Source, sources)), rows)
        return tensor

    # -- lowering

    def lower_node(self, node: gs.Node) -> None:
        record = record_of(node)
        if record is None:
            domain = f"{node.domain}." if node.domain else ""
            raise CompileError(
                f"node {node.name!r}",
                f"operator {domain}{node.op} cannot run on the GPU, no lowering is registered for it",
                "see docs/ops.md for what is supported and docs/adding-an-op.md for adding it",
            )
        for kernel in record.function(Op(node, self)) or ():
            self.add(kernel)

    def add(self, *kernels: Kernel) -> None:
        for kernel in kernels:
            for binding in kernel.bindings:
                if binding.tensor not in self.tensors:
                    raise AssertionError(f"kernel {kernel.name} binds unknown tensor {binding.tensor}")
            self.kernels.append(kernel)

    def program(self, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Program:
        used = {b.tensor for k in self.kernels for b in k.bindings}
        used |= {k.grid.tensor for k in self.kernels if isinstance(k.grid, IndirectGrid)}
        used |= {self.aliases.get(port, port) for port in (*inputs, *outputs)} & self.tensors.keys()
        return Program(
            name,
            self.rows,
            tuple(self.kernels),
            {key: tensor for key, tensor in self.tensors.items() if key in used},
            {key: weight for key, weight in self.weights.items() if key in used},
            inputs,
            outputs,
            dict(self.aliases),
        )


def reads(**tensors: Tensor) -> list[Binding]:
    """Bindings read by a kernel, by their names in WGSL."""
    return [Binding(variable, tensor.name, Access.READ) for variable, tensor in tensors.items()]


def writes(**tensors: Tensor) -> list[Binding]:
    """Bindings written (or updated) by a kernel, by their names in WGSL."""
    return [Binding(variable, tensor.name, Access.READ_WRITE) for variable, tensor in tensors.items()]


def n_elements(shape: tuple[int, ...]) -> int:
    return prod(shape)


def renamed(kernel: Kernel, name: str) -> Kernel:
    """`kernel` under another name."""
    return replace(kernel, name=name)
