"""Progress with remaining time on stderr, for work that takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_PATIENCE = 2.0  # seconds before anything is shown


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
        # a file or a pipe would keep every redrawing
        self._enabled = enabled and console.is_terminal
        self._began = time.monotonic()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bars.stop()

    def task(self, description: str, total: int) -> Callable[[], None]:
        """Add a task; return a function that advances it by one."""
        task = self._bars.add_task(description, total=total)

        def advance() -> None:
            self._bars.advance(task)
            late = time.monotonic() - self._began > _PATIENCE
            if self._enabled and late and not self._shown:
                self._shown = True
                self._bars.start()

        return advance
