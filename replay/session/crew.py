"""How long some work takes one process or several, by trials of its beginning."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replay.processes.launch import at_once
from replay.processes.rehearsal import Rehearsal
from replay.progress import Progress
from replay.results.parts import Parts
from replay.session.bound_run import BoundRun
from replay.session.question import Question
from replay.session.scoring import tried
from replay.session.shared_scoring import answered_together
from replay.steps.tape import Tape

_LOOKS = 3  # comparisons of examples that processes divide


@dataclass(frozen=True)
class Trials:
    """Seconds of some work, of all processes together.

    Attributes:
        first: What the first time takes more than others, in each process.
        compared: Comparing examples alone and with others.
        base: What is to be done whatever the size.
        each: What each step (or example) takes.
        last: Making the result, which one process does.
        adding: What each step takes of that.
        pieces: Into how many pieces the work was divided.
    """

    first: float
    compared: float
    base: float
    each: float
    last: float
    adding: float
    pieces: int


class Crew:
    """Processes that share the cores of this machine.

    Args:
        run: The run.
        workers: How many; several divide work in chunks of their own.
    """

    def __init__(self, run: BoundRun, workers: int) -> None:
        self._run, self.workers = run, workers

    def share(self, pieces: int) -> float:
        """Return how long divided work takes until all pieces are done, over their sum."""
        busy = min(self.workers, pieces)
        return max(1 / self._at_once(busy), math.ceil(pieces / busy) / pieces)

    def own(self, seconds: float) -> float:
        """Return how long what each process does for itself takes until all have done it."""
        return seconds * self.workers / self._at_once(self.workers)

    def begins(self, trials: Trials) -> float:
        """Return what is done once, whatever there is to do."""
        return self.own(trials.first) + trials.compared * self.share(_LOOKS)

    def hands_on(self, tape: Tape) -> bool:
        """Return whether processes take each step's training side once, and hand it on."""
        on_cpu = self._run.computing.device.type == "cpu"
        return self.workers > 1 and on_cpu and not tape.plain and tape.why is not None

    def _at_once(self, busy: int) -> int:
        return at_once(busy, self._run.computing.threads.number)

    def tried(self, asked: Callable[[int], Question], more: int) -> Trials:
        """Try questions of the sizes 1 and ``more``."""
        took = self._run.chunks.took
        before = sum(took.values())
        first, _, _ = self._answered(asked(1))
        compared = sum(took.values()) - before
        one, last, _ = self._answered(asked(1))
        some, longer, pieces = self._answered(asked(more))
        each, adding = (max(0.0, b) / max(1, more - 1) for b in (some - one, longer - last))
        first, base = max(0.0, first - compared - one), max(0.0, one - each)
        return Trials(first, compared, base, each, max(0.0, last - adding), adding, pieces)

    def _answered(self, question: Question) -> tuple[float, float, int]:
        """Return the time of the work and of making the result, and the number of pieces."""
        began = time.perf_counter()
        if self.workers == 1:
            tried(self._run, question)
            return time.perf_counter() - began, 0.0, 1
        group = Rehearsal(self.workers)
        with (
            tempfile.TemporaryDirectory() as folder,
            Parts(Path(folder) / "parts", {}) as parts,
            self._run.computing(),
            Progress(enabled=False) as bars,
        ):
            answered_together(self._run, question, group, parts, bars)
            ended = time.perf_counter()
        return group.done - began, ended - group.done, group.pieces
