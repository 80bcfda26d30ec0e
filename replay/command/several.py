"""The option by which a command runs on several processes of this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from replay.processes.alone import Alone
from replay.processes.group import here
from replay.processes.launch import idle

_HELP = (
    "Processes of this machine that share the work, with one thread each unless --threads says "
    "more. Any number gives the same bits. On several machines: torchrun ... -m -- replay ..."
)


class Several(Exception):
    """The command is to be run on several processes.

    Attributes:
        workers: How many.
        idle: What to say of processors that have nothing to do; None is nothing.
    """

    def __init__(self, workers: int, idle: str | None) -> None:
        super().__init__(workers)
        self.workers, self.idle = workers, idle


def takes_workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--workers``; it is begun anew on as many processes, which share the work."""

    @click.option("--workers", type=click.IntRange(min=1), help=_HELP)
    @wraps(command)
    def told(*, workers: int | None, **given: Any) -> None:
        tests, alone = given.get("tests"), isinstance(here(), Alone)
        if (workers or not alone) and tests is not None and tests.file == "-":
            raise click.UsageError(
                "the processes of a job cannot read standard input; write the IDs to a file."
            )
        if workers and alone and not given.get("dry_run"):
            raise Several(workers, None if given["settings"].threads else idle(workers))
        if given.get("dry_run") and not here().leads:
            return
        number = {"workers": max(workers or 1, here().size)} if "dry_run" in given else {}
        command(**given, **number)

    return told
