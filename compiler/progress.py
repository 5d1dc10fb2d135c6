"""Progress of a compilation: a line that lives on a terminal, silence elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.text import Text


class Observer(Protocol):
    """What the pipeline tells: stages that begin, bytes of weights written, shapes tried by `--tune`."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, name: str) -> None: ...
    def weights(self, total_nbytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def trials(self, done: int, total: int) -> None: ...


class SilentObserver:
    """Tells nobody."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str) -> None:
        return None

    def weights(self, total_nbytes: int) -> None:
        return None

    def advance(self, nbytes: int) -> None:
        return None

    def trials(self, done: int, total: int) -> None:
        return None


class TerminalObserver(SilentObserver):
    """A spinner with the stage at work, then a bar of the weights; gone when it is over."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True, refresh_per_second=10)
        self._bar = Progress(
            TextColumn("  packing weights"),
            BarColumn(bar_width=32),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._tuning = Progress(
            TextColumn("  tuning"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def stage(self, name: str) -> None:
        self._live.update(Spinner("dots", text=Text(name)), refresh=True)

    def weights(self, total_nbytes: int) -> None:
        self._task = self._bar.add_task("weights", total=total_nbytes)
        self._live.update(self._bar, refresh=True)

    def advance(self, nbytes: int) -> None:
        if self._task is not None:  # headers and padding come on top of the weights: stop at full
            task = self._bar.tasks[0]
            self._bar.update(self._task, completed=min(task.completed + nbytes, task.total or 0))

    def trials(self, done: int, total: int) -> None:
        if not self._tuning.tasks:
            self._tuning.add_task("tuning", total=total)
            self._live.update(self._tuning, refresh=True)
        self._tuning.update(self._tuning.tasks[0].id, completed=done)


def observer_for(stream: TextIO, quiet: bool) -> Observer:
    """Live progress where `stream` is a terminal and the user wants any, else silence."""
    # Not rich's own guess: it takes a pipe for a terminal where FORCE_COLOR is set, as CI does.
    if quiet or not stream.isatty():
        return SilentObserver()
    console = Console(file=stream)
    return SilentObserver() if console.is_dumb_terminal else TerminalObserver(console)
