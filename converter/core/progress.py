"""Progress with an ETA, on stderr. The stages report; whoever starts them decides what is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ..storage.printable import printable

Advance = Callable[[int], None]


class Progress(Protocol):
    """What a long stage reports to."""

    def stage(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Open a stage of `total` steps; the context yields a function that advances it by n steps."""
        ...

    def note(self, message: str) -> None:
        """One line worth keeping (a fallback that was applied, a file that was written)."""
        ...


class SilentProgress:
    """Reports nothing: for library use and tests."""

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda steps: None

    def note(self, message: str) -> None:
        pass


class ConsoleProgress:
    """Bars with an ETA on a terminal; one plain line per stage where stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=3600,  # seconds: a step may take minutes
        )
        with bars:
            task = bars.add_task(label, total=total)
            yield lambda steps: bars.update(task, advance=steps)

    def note(self, message: str) -> None:
        self._console.print(printable(message), style="dim", markup=False)
