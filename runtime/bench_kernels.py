"""Which kernel takes how long, in a program as it is replayed, and how far that is from the ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .bench_ceilings import Ceilings
from .bench_timer import GpuTimer
from .details import ProgramDetails, StepDetails
from .programs import Dispatch, Program
from .replay import DispatchCall, Recorder, emptied
from .resources import Resources

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
    details: ProgramDetails,
    capacity: int,
    shader_names: Sequence[str],
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
    pairs = zip(program.steps, details.steps, strict=True)
    steps = [(step, facts) for step, facts in pairs if isinstance(step, Dispatch)]
    timed = [
        (step, facts, (call.pipeline, call.bind_group, call.grid))
        for (step, facts), call in zip(steps, calls, strict=True)
        if call.indirect is None
    ]
    whole, single = [], []
    for _ in range(repeats + 1):
        rewind()
        whole.append(timer.seconds([[call for *_, call in timed]])[0])
        rewind()
        single.append(_one_by_one(timer, [call for *_, call in timed]))
    medians = [median(samples) for samples in zip(*single[1:], strict=True)]
    filled = min((depth + max(program.rows, 1)) / capacity, 1.0)
    measured = [(step, facts, one) for (step, facts, _), one in zip(timed, medians, strict=True)]
    kernels = _together(measured, shader_names, ceilings, filled)
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
    measured: Sequence[tuple[Dispatch, StepDetails, float]],
    shader_names: Sequence[str],
    ceilings: Ceilings,
    filled: float,
) -> tuple[KernelTime, ...]:
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[Dispatch, StepDetails, float]]] = {}
    for each in measured:
        step = each[0]
        groups.setdefault((step.shader, step.grid or ()), []).append(each)
    kernels = []
    for (shader, grid), members in groups.items():
        step, facts, _ = members[0]
        seconds = sum(one for *_, one in members)
        nbytes, n_ops = moved_nbytes(facts, filled), n_operations(facts, filled)
        by_read = nbytes / ceilings.read
        by_ops = n_ops / (ceilings.int8 if "int8" in step.kernel else ceilings.f32)
        kernels.append(
            KernelTime(
                step.kernel,
                shader_names[shader],
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


def moved_nbytes(step: StepDetails, filled: float) -> int:
    """Bytes that a step has to read or write when this part of the KV cache is filled."""
    return step.reads + step.writes - int(step.cache * (1 - filled))


def n_operations(step: StepDetails, filled: float) -> int:
    """Operations of a step, two per multiply-accumulate: attention does those of what is in the cache."""
    return int(2 * step.work * (filled if step.cache else 1.0))
