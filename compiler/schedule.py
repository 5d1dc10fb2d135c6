"""The order of a program's kernels.

Kernels arrive in an order that is right (the graph was sorted topologically). This module makes the
dependences explicit as a graph, orders the kernels by it, and answers what the plan asks of that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx

from .program import Access, IndirectGrid, Kernel, Program


def hazards(kernels: Sequence[Kernel]) -> nx.DiGraph:
    """Which kernel must follow which: read after write, write after read, write after write."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(kernels)))
    last_write: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for i, kernel in enumerate(kernels):
        for tensor in reads_of(kernel):
            if tensor in last_write:
                graph.add_edge(last_write[tensor], i)
            readers.setdefault(tensor, []).append(i)
        for tensor in writes_of(kernel):
            if tensor in last_write:
                graph.add_edge(last_write[tensor], i)
            for reader in readers.pop(tensor, ()):
                if reader != i:
                    graph.add_edge(reader, i)
            last_write[tensor] = i
    return graph


def reads_of(kernel: Kernel) -> list[str]:
    """Tensors whose old contents the kernel needs: what it binds read-only, and its indirect grid."""
    names = [b.tensor for b in kernel.bindings if b.access is Access.READ]
    if isinstance(kernel.grid, IndirectGrid):
        names.append(kernel.grid.tensor)
    return names


def writes_of(kernel: Kernel) -> list[str]:
    """Tensors that the kernel binds for writing (it may read them too: KV cache, sequence words)."""
    return [b.tensor for b in kernel.bindings if b.access is Access.READ_WRITE]


def schedule(program: Program) -> Program:
    """The program with its kernels in the order of their dependences, ties as they came.

    Ties keep their order so that kernels which may overlap on the GPU stay neighbours, as lowered.
    """
    graph = hazards(program.kernels)
    order = nx.lexicographical_topological_sort(graph, key=lambda i: i)
    return replace(program, kernels=tuple(program.kernels[i] for i in order))


def depth(program: Program) -> int:
    """Dispatches on the longest dependent chain: what a GPU of any width must run one after another."""
    graph = hazards(program.kernels)
    return int(nx.dag_longest_path_length(graph)) + 1 if graph else 0
