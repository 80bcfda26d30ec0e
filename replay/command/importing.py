"""Imports what a command needs, which may take seconds: Ctrl-C ends the program quietly meanwhile.

Torch alone takes a second or more, so that options, help and completion import nothing of it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from replay.processes.launch import BEGUN

INTERRUPTED = 130


def job(command: str) -> Callable[..., None]:
    """Return what a command does: the function of its name, in ``jobs``."""
    with leaving():
        module = import_module(f"replay.command.jobs.{command}")
    does: Callable[..., None] = getattr(module, command)
    return does


@contextmanager
def leaving() -> Iterator[None]:
    """Let Ctrl-C end the program at once: modules swallow it while they load, and break later."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say_interrupted() -> None:
    """Say so on stderr; of a job's processes one does, or the program that has begun them."""
    rank = os.environ.get("RANK")
    if rank is None or (rank == "0" and BEGUN not in os.environ):
        text = "Interrupted; no file was written unless a line above says so."
        print(text, file=sys.stderr, flush=True)


def _leave(*_: Any) -> None:
    say_interrupted()
    os._exit(INTERRUPTED)
