"""Runs passes: in order, to a fixed point where asked, checking and reporting between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_graphsurgeon as gs

from ..errors import CompileError
from ..graph import tidy
from .shapes import infer_shapes
from .verify import check_structure

MAX_ROUNDS = 50
Pass = Callable[[gs.Graph], int]
Watcher = Callable[["PassRecord", gs.Graph], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Passes that belong together, run in order: once, or again until none of them changes anything."""

    name: str
    passes: tuple[Pass, ...]
    fixed_point: bool = False


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One run of one pass."""

    index: int
    group: str
    name: str
    changes: int
    seconds: float
    n_nodes: int


class PassError(CompileError):
    """A pass broke: a bug here. The message names the pass, its group and the passes that ran before."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem, "report this as a bug, with the model if you can")


@dataclass(slots=True)
class Runner:
    """Runs groups over one graph and remembers what happened.

    Args:
        disabled: names of passes to leave out.
        watchers: called after every pass that changed something; dumps are one.
    """

    disabled: frozenset[str] = frozenset()
    watchers: tuple[Watcher, ...] = ()
    records: list[PassRecord] = field(default_factory=list)

    def run(self, graph: gs.Graph, group: Group) -> int:
        """Run a group; returns the number of changes.

        Raises:
            CompileError: a pass refused the model.
            PassError: a pass broke, or the group does not settle.
        """
        total = 0
        for _ in range(MAX_ROUNDS if group.fixed_point else 1):
            changes = sum(self._run_one(graph, group, rule) for rule in group.passes)
            total += changes
            if not changes or not group.fixed_point:
                return total
        problem = f"it does not settle after {MAX_ROUNDS} rounds; {self._history()}"
        raise PassError(f"group {group.name}", problem)

    def _run_one(self, graph: gs.Graph, group: Group, rule: Pass) -> int:
        name = pass_name(rule)
        if name in self.disabled:
            return 0
        start = time.perf_counter()
        try:
            changes = rule(graph)
            if changes:
                tidy(graph)
                infer_shapes(graph)
                check_structure(graph)
        except CompileError:
            raise
        except Exception as error:
            problem = f"it failed ({error!r}); {self._history()}"
            raise PassError(f"pass {name} of group {group.name}", problem) from error
        seconds = time.perf_counter() - start
        record = PassRecord(len(self.records), group.name, name, changes, seconds, len(graph.nodes))
        self.records.append(record)
        if changes:
            for watcher in self.watchers:
                watcher(record, graph)
        return changes

    def _history(self) -> str:
        ran = [record.name for record in self.records if record.changes]
        return f"before it ran: {', '.join(ran) or 'nothing that changed the graph'}"


def pass_name(rule: Any) -> str:
    """The name by which dumps, reports and --disable-pass know a pass."""
    return str(rule.func.__name__ if isinstance(rule, partial) else rule.__name__)
