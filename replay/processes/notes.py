"""Warnings of a job: what any of its processes says is shown once, by the one that leads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from replay.processes.alone import Alone
from replay.processes.group import Group
from tracer.errors import InputError


class Notes:
    """Shows warnings on the process that leads, and tells it those of the others.

    Args:
        group: The processes.
        show: Shows a text.
    """

    def __init__(self, group: Group | Alone, show: Callable[[str], None]) -> None:
        self._group, self._show = group, show
        self._said: set[str] = set()

    def take(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """Take a warning; in place of ``warnings.showwarning``."""
        text = str(message)
        if text in self._said:
            return
        self._said.add(text)
        if self._group.leads:
            self._show(text)
        else:
            with suppress(InputError):  # what started the job is gone; said by what needs it
                self._group.warn(text)

    def show_others(self) -> None:
        """Show what only other processes have said, and how many of them."""
        with suppress(InputError):
            for text, count in self._group.warnings().items():
                if text not in self._said:
                    self._show(f"({count} of {self._group.size} processes) {text}")
