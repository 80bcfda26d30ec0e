"""A pipe whose reader went away, as with ``| head -1``."""

from __future__ import annotations

import os
import sys

CLOSED = 128 + 13  # as a shell reports programs that SIGPIPE ended


def forget_unwritten() -> None:
    """Let the interpreter's last flush of a closed pipe succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
