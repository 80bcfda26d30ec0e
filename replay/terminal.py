"""What the program writes to: a terminal of any width, or a pipe that may be closed."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from rich.console import Console

CLOSED = 128 + 13  # as a shell reports programs that SIGPIPE ended
_NARROWEST = 80  # tables that are narrower lose their numbers


class Terminal(Console):
    """Standard output, taken to be 80 columns wide where it is narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.width = max(self.width, _NARROWEST)

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught when it calls this; its own would exit with 1."""
        raise


def forget_unwritten() -> None:
    """Let the interpreter's last flush of a closed pipe succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
