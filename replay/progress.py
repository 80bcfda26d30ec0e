"""Progress with remaining time on stderr, for work that takes longer than two seconds.

On a terminal that is a bar; a file or a pipe would keep every redrawing and gets a line a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_PATIENCE = 2.0  # seconds before anything is shown
_LINES = 60.0  # seconds between lines in a file


class Progress:
    """Shows how far tasks have come.

    Args:
        enabled: Whether to show anything.
    """

    def __init__(self, enabled: bool) -> None:
        console = Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._enabled, self._terminal = enabled, console.is_terminal
        self._began = self._said = time.monotonic()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bars.stop()

    def task(self, description: str, total: int) -> Callable[[], None]:
        """Add a task; return a function that advances it by one."""
        number = self._bars.add_task(description, total=total)
        task = next(one for one in self._bars.tasks if one.id == number)

        def advance() -> None:
            self._bars.advance(number)
            if self._enabled:
                self._show(task)

        return advance

    def _show(self, task: Task) -> None:
        now = time.monotonic()
        if self._terminal:
            if not self._shown and now - self._began > _PATIENCE:
                self._shown = True
                self._bars.start()
        elif now - self._said > _LINES and not task.finished:
            self._said = now
            left = task.time_remaining
            more = "" if left is None else f", {duration(left)} left"
            print(
                f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}{more}",
                file=sys.stderr,
                flush=True,
            )


def duration(seconds: float) -> str:
    """Return a time as text, in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
