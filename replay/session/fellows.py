"""Processes of a host that walk along the same steps: what they find of those is found once."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from replay.evaluate.trained_step import TrainedStep
from replay.processes.group import Group
from replay.processes.handing import OPEN, Handing, Work
from replay.steps.schedule import Visit

_ROOM = 8  # the part of the budget that files may take which others have not read yet
_KEPT = 30.0  # seconds between states of a walk that are kept, about


class Fellows:
    """The processes with which this one walks.

    Args:
        group: All of the job.
        budget: Bytes of this process.
        folder: For what they hand on.
    """

    def __init__(self, group: Group, budget: int, folder: Path) -> None:
        self._group, self._room, self._folder = group, budget // _ROOM, folder
        self.leave()

    def leave(self, name: str = "") -> None:
        """Begin a walk alone."""
        self._name, self._others, self._begun = name, 0, 0
        self._since, self._steps, self._every = time.monotonic(), 0, 0

    def meet(
        self, number: int, own: Sequence[tuple[range, bool]], ranks: Sequence[int]
    ) -> range | None:
        """Begin a walk with those that walk through the same steps.

        Args:
            number: Of the walk.
            own: Through which steps this process is to go, and whether it has them in memory.
            ranks: Processes of this host that may have something to do in this walk; others help.

        Returns:
            The steps through which all go together; None if each goes alone.
        """
        group = self._group
        self.leave(f"walk {number}")
        if group.rank in ranks:
            known = [[steps.start, steps.stop, kept] for steps, kept in own]
            group.tell(f"{self._name} of {group.rank}", known)
        told = [known for rank in ranks if (known := group.told(f"{self._name} of {rank}"))]
        if (
            not OPEN.is_dir()
            or len(group.neighbours) == 1
            or len({str(known) for known in told}) != 1
        ):
            return None
        (start, stop, kept), *others = told[0]
        if others or kept:
            return None
        self._others = len(group.neighbours) - 1
        return range(start, stop)

    def begin(
        self, work: Work[TrainedStep], visits: Sequence[Visit]
    ) -> Handing[TrainedStep] | None:
        """Begin a sequence of results that all share; None where there is nobody."""
        if not self._others:
            return None
        self._begun += 1
        of = zlib.crc32(repr(visits).encode())  # no step is ever taken for another
        name, length = f"{self._name}, {self._begun} of {of}", len(visits)
        return self._group.handing(work, length, name, self._others, self._room, self._folder)

    def keep(self) -> bool:
        """Count a step; return whether all keep their states after it, so that they stay together.

        How many steps lie between is what the first of them takes in some seconds.
        """
        if not self._steps:
            self._since = time.monotonic()
        self._steps += 1
        name = f"steps kept of {self._name}"
        if not self._every and time.monotonic() - self._since > _KEPT:
            if not self._others:
                self._every = self._steps
            elif self._group.claims(name):
                self._group.tell(name, self._steps)
        if self._others and not self._every:
            self._every = self._group.heard(name) or 0
        return self._steps > self._every > 0 == self._steps % self._every
