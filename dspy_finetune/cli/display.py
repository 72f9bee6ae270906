"""Bars with an estimate of the time left, on stderr: live on a terminal, a line now and then elsewhere.

In: titles, counts, notes. Out: nothing on stdout, ever.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET_SECONDS = 15.0
"""Where nothing can be redrawn, a running step says how far it is this often."""


class Display:
    """One bar per title; a new title ends the bar before it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._began = self._told = 0.0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Display:
        if self.live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self.live:
            self._bars.stop()

    def show(self, title: str, n_done: int = 0, n_total: int | None = None, note: str = "") -> None:
        """Say how far the step of that title is."""
        now = time.monotonic()
        if title != self._title:
            self._finish()
            self._title, self._began, self._told, self._first = title, now, now, None
            if self.live:
                self._task = self._bars.add_task(title, total=n_total, note=note)
            else:
                self.console.print(title, highlight=False)
        if n_done and self._first is None:
            self._first = (now, n_done)
        if self.live and self._task is not None:
            self._bars.update(self._task, completed=n_done, total=n_total, note=note)
        elif now - self._told >= QUIET_SECONDS:
            self._told = now
            self.console.print(f"  {self._position(n_done, n_total, now)} {note}".rstrip(), highlight=False)

    def _position(self, n_done: int, n_total: int | None, now: float) -> str:
        if not n_total:
            return f"{now - self._began:.0f} s"
        # From the first sign of progress on: what came before it (loading, queueing) does not come again.
        since, at_first = self._first or (now, n_done)
        if n_done <= at_first:
            return f"{n_done}/{n_total}"
        left = (now - since) / (n_done - at_first) * (n_total - n_done)
        return f"{n_done}/{n_total}, about {left:.0f} s left"

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[-1]
            total = task.total or task.completed or 1
            self._bars.update(self._task, completed=total, total=total)
            self._task = None
