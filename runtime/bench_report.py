"""What `webgpu-bench` found, as tables for people (Markdown), CSV, JSON, or a line of JSON per test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .bench import Result
from .bench_ceilings import Ceilings
from .bench_kernels import ProgramTime
from .inspect_tables import printable


@dataclass(frozen=True, slots=True)
class PeerResults:
    """The same tests by another runtime, turn by turn.

    Of `n_compared` greedy tokens after one prompt the first `n_equal` are the same.
    """

    name: str
    results: Sequence[Result]
    n_equal: int
    n_compared: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured in one run. `ceilings` is None, and `programs` empty, without GPU timestamps."""

    model: str
    device: str
    driver: str
    backend: str
    variant: str
    weights_nbytes: int
    tokens_per_submit: int
    results: Sequence[Result]
    ceilings: Ceilings | None = None
    programs: Sequence[ProgramTime] = field(default=())
    peer: PeerResults | None = None


def text(report: Report, form: str) -> str:
    """`report` in one of the forms md, csv, json and jsonl."""
    if form == "json":
        return json.dumps(document(report), indent=2) + "\n"
    if form == "jsonl":
        shared = {key: value for key, value in document(report).items() if key in _SHARED}
        return "".join(json.dumps({**shared, **_test(result)}) + "\n" for result in report.results)
    return _csv(report) if form == "csv" else _markdown(report)


_SHARED = ("model", "device", "driver", "backend", "variant", "weights_nbytes", "tokens_per_submit")


def document(report: Report) -> dict[str, Any]:
    """The report as JSON has it: seconds, bytes and operations as they were measured."""
    return {
        "format": "webgpu-bench",
        "version": 1,
        **{name: getattr(report, name) for name in _SHARED},
        "tests": [_test(result) for result in report.results],
        "ceilings": asdict(report.ceilings) if report.ceilings else None,
        "programs": [asdict(program) for program in report.programs],
        **({"peer": _peer_document(report, report.peer)} if report.peer else {}),
    }


def _peer_document(report: Report, peer: PeerResults) -> dict[str, Any]:
    return {
        "name": peer.name,
        "tests": [
            {**_test(theirs), "ratio": ours.mean / theirs.mean}
            for ours, theirs in zip(report.results, peer.results, strict=True)
        ],
        "n_equal": peer.n_equal,
        "n_compared": peer.n_compared,
    }


def _test(result: Result) -> dict[str, Any]:
    return {
        "test": result.test.name,
        "n_prompt": result.test.n_prompt,
        "n_gen": result.test.n_generated,
        "n_depth": result.test.depth,
        "sampling": dict(result.test.sampling),
        "avg_ts": result.mean,
        "stddev_ts": result.deviation,
        "samples_ts": list(result.samples),
    }


def _csv(report: Report) -> str:
    out = io.StringIO()
    columns = ("test", "n_prompt", "n_gen", "n_depth", "avg_ts", "stddev_ts")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_SHARED, *columns))
    for result in report.results:
        test = _test(result)
        writer.writerow((*(getattr(report, name) for name in _SHARED), *(test[name] for name in columns)))
    return out.getvalue()


def _markdown(report: Report) -> str:
    size = f"{report.weights_nbytes / 2**20:.1f} MiB"
    rows = [
        (report.model, size, report.backend, report.variant, result.test.name, _rate(result))
        for result in report.results
    ]
    parts = [
        f"{printable(report.device)}, driver {printable(report.driver)}, "
        f"{report.tokens_per_submit} tokens per submit",
        _table(("model", "weights", "backend", "variant", "test", "t/s"), rows, right=1),
    ]
    if report.peer is not None:
        parts.append(_side_by_side(report, report.peer))
    if report.ceilings is not None:
        ceilings = report.ceilings
        parts.append(
            f"Ceilings of this device: {ceilings.read / 1e12:.2f} TB/s read, "
            f"{ceilings.int8 / 1e12:.1f} T int8 operations/s, {ceilings.f32 / 1e12:.1f} T f32 operations/s."
        )
    parts += [_program(program, report.results) for program in report.programs]
    return "\n\n".join(parts) + "\n"


def _side_by_side(report: Report, peer: PeerResults) -> str:
    rows = [
        (ours.test.name, _rate(ours), _rate(theirs), f"{ours.mean / theirs.mean:.2f}")
        for ours, theirs in zip(report.results, peer.results, strict=True)
    ]
    head = (
        f"Side by side with {printable(peer.name)}, turn by turn; "
        f"of {peer.n_compared} greedy tokens the first {peer.n_equal} are the same."
    )
    return f"{head}\n\n{_table(('test', 't/s', 't/s of the peer', 'ratio'), rows, right=3)}"


def _rate(result: Result) -> str:
    return f"{result.mean:.2f} ± {result.deviation:.2f}"


def _program(program: ProgramTime, results: Sequence[Result]) -> str:
    alone = sum(kernel.seconds for kernel in program.kernels)
    head = (
        f"{program.program} at depth {program.depth}: {program.n_dispatches} dispatches, "
        f"GPU {1e6 * program.gpu_seconds:.1f} µs ({1e6 * alone:.1f} µs as a pass per kernel), "
        f"host {1e6 * program.host_seconds:.1f} µs to encode "
        f"({1e6 * program.host_seconds / program.n_dispatches:.2f} µs per dispatch)."
    )
    for test, wall in ((result.test, 1 / result.mean) for result in results):
        greedy = test.n_generated and not test.sampling
        if program.program == "decode" and greedy and test.depth == program.depth:
            more = 100 * (wall / program.gpu_seconds - 1)
            head += f" {test.name}: {1e6 * wall:.1f} µs a token by the clock, {more:+.1f} % of GPU time."
    rows = []
    for kernel in program.kernels:
        one = kernel.seconds / kernel.count
        rows.append(
            (
                kernel.kernel,
                "x".join(map(str, kernel.grid)),
                str(kernel.count),
                f"{1e6 * one:.2f}",
                f"{1e6 * kernel.seconds:.1f}",
                f"{100 * kernel.seconds / alone:.1f} %",
                f"{kernel.nbytes / one / 1e9:.0f}",
                f"{kernel.n_ops / one / 1e12:.2f}",
                f"{100 * kernel.share:.0f} % of {kernel.bound}",
            )
        )
    columns = ("kernel", "grid", "n", "µs", "sum µs", "share", "GB/s", "Tops/s", "of its ceiling")
    return f"{head}\n\n{_table(columns, rows, right=7)}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> str:
    """A Markdown table, padded to be read as it is; the last `right` columns are aligned to the right."""
    cells = [tuple(columns), *(tuple(printable(cell).replace("|", "/") for cell in row) for row in rows)]
    widths = [max(2, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lefts = len(columns) - right

    def line(row: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if i < lefts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w if i < lefts else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])
