"""Progress of a compilation: bars on a terminal, silence elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Observer(Protocol):
    """What the pipeline tells: stages that begin, and bytes of weights written."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, name: str) -> None: ...
    def weights(self, total_nbytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...


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


class RichObserver(SilentObserver):
    """A line for the stage at work and a bar for the weights."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._stage = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str) -> None:
        self._progress.update(self._stage, description=name)

    def weights(self, total_nbytes: int) -> None:
        self._progress.update(self._stage, description="packing weights", total=total_nbytes, completed=0)

    def advance(self, nbytes: int) -> None:
        self._progress.advance(self._stage, nbytes)
