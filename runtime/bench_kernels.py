"""Which kernel takes how long, in a program as it is replayed, and how far that is from the ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .bench_ceilings import Ceilings
from .bench_timer import GpuTimer
from .replay import DispatchCall, Recorder, emptied
from .resources import Resources
from .schema import Dispatch, Manifest, Program

ENCODINGS = 20  # of which the median counts


@dataclass(frozen=True, slots=True)
class KernelTime:
    """The dispatches of one shader over one grid, together.

    `nbytes` is what one of them has to move: its weights, activations and the filled part of the cache.
    `n_ops` counts a multiply-accumulate as two. `share` compares the time with that of the nearer ceiling:
    1 is as fast as the device can.
    """

    kernel: str
    shader: str
    grid: tuple[int, ...]
    count: int
    seconds: float
    nbytes: int
    n_ops: int
    bound: str
    share: float


@dataclass(frozen=True, slots=True)
class ProgramTime:
    """One program at one depth: GPU time of a replay in one pass, host time of encoding it, its kernels.

    The host encodes as many replays for one submission as a generation does; `host_seconds` is of one.
    The kernels' sum exceeds the replay's time: each is a pass of its own there, and nothing overlaps.
    """

    program: str
    depth: int
    n_dispatches: int
    gpu_seconds: float
    host_seconds: float
    kernels: tuple[KernelTime, ...]


def time_program(
    name: str,
    program: Program,
    depth: int,
    *,
    manifest: Manifest,
    resources: Resources,
    timer: GpuTimer,
    ceilings: Ceilings,
    rewind: Callable[[], None],
    repeats: int,
    per_submit: int = 1,
) -> ProgramTime:
    """Replay `program` with timestamps. `rewind` puts the sequence back to `depth` before each replay.

    `per_submit`: replays that the host encodes together.

    Only steps with a fixed grid are timed one by one: copies are left out.
    """
    prepared = resources.programs[name]
    calls = [call for call in prepared.keep if isinstance(call, DispatchCall)]
    steps = [step for step in program.steps if isinstance(step, Dispatch)]
    timed = [
        (step, (call.pipeline, call.bind_group, call.grid))
        for step, call in zip(steps, calls, strict=True)
        if call.indirect is None
    ]
    whole, single = [], []
    for _ in range(repeats + 1):
        rewind()
        whole.append(timer.seconds([[call for _, call in timed]])[0])
        rewind()
        single.append(_one_by_one(timer, [call for _, call in timed]))
    medians = [median(samples) for samples in zip(*single[1:], strict=True)]
    length = depth + max(program.rows, 1)
    kernels = _together(
        [(step, seconds) for (step, _), seconds in zip(timed, medians, strict=True)],
        manifest,
        ceilings,
        length,
    )
    host = _host_seconds(resources.recorder, prepared, per_submit)
    return ProgramTime(name, depth, len(calls), median(whole[1:]), host, kernels)


def _one_by_one(timer: GpuTimer, calls: Sequence[Any]) -> list[float]:
    seconds: list[float] = []
    for start in range(0, len(calls), timer.max_passes):
        seconds += timer.seconds([[call] for call in calls[start : start + timer.max_passes]])
    return seconds


def _host_seconds(recorder: Recorder, prepared: Any, per_submit: int) -> float:
    """Encoding and submitting one replay of `per_submit`, without what the GPU does then."""
    work = [emptied(prepared)] * per_submit
    samples = []
    for _ in range(ENCODINGS):
        start = time.perf_counter()
        submission = recorder.submit(work)
        samples.append(time.perf_counter() - start)
        recorder.wait(submission)
    return median(samples) / per_submit


def _together(
    timed: Sequence[tuple[Dispatch, float]], manifest: Manifest, ceilings: Ceilings, length: int
) -> tuple[KernelTime, ...]:
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[Dispatch, float]]] = {}
    for step, seconds in timed:
        groups.setdefault((step.shader, tuple(step.grid or ())), []).append((step, seconds))
    kernels = []
    for (shader, grid), members in groups.items():
        step = members[0][0]
        seconds = sum(one for _, one in members)
        nbytes, n_ops = (
            moved_nbytes(step, manifest, length),
            int(2 * step.work * _filled(step, manifest, length)),
        )
        by_read = nbytes / ceilings.read
        by_ops = n_ops / (ceilings.int8 if "int8" in step.kernel else ceilings.f32)
        kernels.append(
            KernelTime(
                step.kernel,
                manifest.shaders[shader].file,
                grid,
                len(members),
                seconds,
                nbytes,
                n_ops,
                "memory" if by_read >= by_ops else "arithmetic",
                max(by_read, by_ops) * len(members) / seconds,
            )
        )
    return tuple(sorted(kernels, key=lambda kernel: -kernel.seconds))


def moved_nbytes(step: Dispatch, manifest: Manifest, length: int) -> int:
    """Bytes that `step` has to read or write with `length` positions in the sequence.

    Of a look-up only what it writes counts, twice: the table's other rows are not read. Of the caches the
    filled part counts.
    """
    if step.kernel in ("embed", "gather"):
        return 2 * step.writes
    total = 0
    for bound in step.bindings:
        if manifest.buffers[bound.buffer].kind != "state":
            total += bound.nbytes
        elif step.kernel.startswith("attention"):  # others append a position, or read a few words
            total += int(bound.nbytes * _filled(step, manifest, length))
    return total


def _filled(step: Dispatch, manifest: Manifest, length: int) -> float:
    """The part of its greatest work that a kernel does at this length: attention looks at what is there."""
    if manifest.sequence is None or not step.kernel.startswith("attention"):
        return 1.0
    return min(length / manifest.sequence.capacity, 1.0)
