"""A job that goes on, or has several processes: the same surroundings and task for all parts."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.evaluate.train_side import losses_at
from replay.processes.group import Group
from replay.results.part_folder import begun_with, parts_of, remove_unbegun
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.memory import MEMORY

THREADS = "number of threads"  # in the question of finished parts, whose bits depend on it


def go_on(run: BoundRun, out: Path | None) -> None:
    """Keep the number of threads of parts that are finished, so that the others agree with them."""
    number = None if out is None else begun_with(parts_of(out), THREADS)
    if isinstance(number, int):
        run.computing.threads.keep(number)


def begin_together(run: BoundRun, group: Group, out: Path) -> None:
    """Let all processes of a job take threads and temporaries like the one that leads.

    That one takes them as the job began. No number of threads is chosen by timing, since bits
    would depend on the machine's other work.

    Args:
        run: The run.
        group: The processes.
        out: Where the result will stand, and beside it finished parts.

    Raises:
        InputError: A process has less memory than the job began with.
    """
    threads, memory, parts = run.computing.threads, run.computing.memory, parts_of(out)
    with group.agreeing():
        if group.leads:
            remove_unbegun(out)
            go_on(run, out)
            memory.begin()
            memory.keep(begun_with(parts, MEMORY) or memory.cuts, parts)
    if group.leads:
        group.tell(THREADS, threads.number)
        group.tell(MEMORY, memory.cuts)
    threads.keep(threads.number if group.leads else int(group.told(THREADS)))
    with group.agreeing():
        memory.keep(memory.cuts if group.leads else int(group.told(MEMORY)), parts)


def recognise_losses(run: BoundRun, parts: Parts, t: int) -> None:
    """Raise InputError if a step's examples do not have the losses with which the job began."""
    step, state = run.log.step(t), run.states.at(t)
    losses = losses_at(run.task, step, state, run.models.value, device=run.models.device)
    recognise(parts, "set of training losses", *(one.cpu().numpy() for one in losses))


def recognise(parts: Parts, what: str, *values: NDArray[Any]) -> None:
    """Raise InputError if the task does not give what it gave when the job began.

    Args:
        parts: What is finished.
        what: What the task gives, for messages.
        *values: That, at the beginning of what is asked.
    """
    parts.recognise(what, zlib.crc32(np.concatenate([one.ravel() for one in values]).tobytes()))
