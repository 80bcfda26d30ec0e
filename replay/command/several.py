"""The option by which a command runs on several processes of this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from replay.processes.group import here

_HELP = (
    "Processes of this machine that share the work. Any number from 2 on gives the same bits. On "
    "several machines: torchrun ... -m -- replay ..."
)


class Several(Exception):
    """The command is to be run on several processes.

    Attributes:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers


def takes_workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--workers``; it is begun anew on as many processes, which share the work."""

    @click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help=_HELP)
    @wraps(command)
    def told(*, workers: int, **given: Any) -> None:
        tests = given.get("tests")
        several = workers > 1 or here().size > 1
        if several and tests is not None and tests.file == "-":
            raise click.UsageError(
                "several processes cannot read the same standard input; write the IDs to a file."
            )
        if workers > 1 and here().size == 1 and not given.get("dry_run"):
            raise Several(workers)
        if given.get("dry_run") and not here().leads:
            return
        number = {"workers": max(workers, here().size)} if "dry_run" in given else {}
        command(**given, **number)

    return told
