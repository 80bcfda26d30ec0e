"""Counterfactual runs: each from the first step that visits an example that it changes.

The run itself is taken again first, without a change: it must come out as it was, and shows how
gradients were clipped. Its values are those that others are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from replay.counterfactual.change import Change, first_visits
from replay.counterfactual.clipping import Clips
from replay.counterfactual.execution import ChangedExecution
from replay.counterfactual.lanes import Lanes
from replay.counterfactual.refused import not_the_run
from replay.evaluate.state import State
from replay.states.execution import JOININGS, Joining, Point
from tracer.errors import NonFiniteError
from tracer.full_state import digest
from tracer.log.read.run_log import RunLog
from tracer.records import Step

Table = NDArray[np.float64]
_STEP = 1 << 14  # bytes of a step, most of them random states
Measure = Callable[[State, str], Table]


@dataclass(frozen=True)
class Known:
    """What taking the run again without a change has shown; see ``Runs``."""

    earliest: int
    baseline: Table
    joining: Joining
    clips: Clips


class Runs:
    """Takes counterfactual runs of one run.

    Args:
        log: The run.
        execution: Takes its steps.
        measure: Gives the values of ``φ`` of m test examples at a state.
        marks: The states at which they are taken, in order; the last one is ``T``.
        budget: Bytes for steps that are not read again.
        allow_mismatch: Go on where the run, taken again without a change, comes out otherwise.

    Attributes:
        step: Gives a step of the run.
        measure: See above.
        marks: Likewise.
        advance: Called after each step.
        baseline: The values of the run itself, ``(marks, m)``.
        mismatch: The first step that came out otherwise; None if none did.
    """

    def __init__(
        self,
        log: RunLog,
        execution: ChangedExecution,
        measure: Measure,
        marks: Sequence[int],
        *,
        budget: int,
        allow_mismatch: bool,
    ) -> None:
        self._log, self._execution, self.measure = log, execution, measure
        self.marks, self._allow = list(marks), allow_mismatch
        self.advance: Callable[[], None] = lambda: None
        self.step = lru_cache(max(1, budget // _STEP))(log.step)
        self._first = first_visits(map(self.step, range(len(log))))
        self.baseline: Table = np.empty((0, 0))
        self.mismatch: int | None = None

    def start(self, change: Change) -> int:
        """Return the first step that a change alters; ``T`` if none does."""
        return min((self._first.get(i, self.total) for i in change.ids), default=self.total)

    @property
    def clips(self) -> Clips:
        """How the run clipped gradients, as far as it was taken."""
        return self._execution.clips

    @property
    def total(self) -> int:
        """How many steps the run has."""
        return len(self._log)

    def begin(self, earliest: int) -> int:
        """Choose the state on file from which the run is taken again; return its number.

        Args:
            earliest: The first step that a change will alter.
        """
        self._from = self._at = max(
            t for t in self._log.states() if t <= min([earliest, *self.marks])
        )
        known, buffers = self._log.state(self._from), self._log.buffers(self._from)
        self._origin = self._point = {**known, "buffers": buffers}
        return self._from

    @property
    def known(self) -> Known:
        """What taking the run again has shown, for other processes."""
        return Known(self._from, self.baseline, self._execution.joining, self.clips)

    def adopt(self, known: Known) -> None:
        """Begin with what another process has found."""
        self.begin(known.earliest)
        self.baseline = known.baseline
        self._execution.joining, self._execution.clips = known.joining, known.clips

    def timed(self, change: Change, most: int) -> tuple[float, float]:
        """Return the seconds that a step and that values at one state take, from a few steps."""
        self._execution.change = change
        self._restore(self._from, self._origin)
        steps = range(self._from, min(self._from + most + 1, self.total))
        self._values()
        for t in steps[:1]:
            self._execution.advance(self.step(t))
        began = time.perf_counter()
        for t in steps[1:]:
            self._execution.advance(self.step(t))
        taken = time.perf_counter()
        self._values()
        done = time.perf_counter()
        self._execution.change = None
        return (taken - began) / max(1, len(steps) - 1), done - taken

    def walk(self) -> Table:
        """Take the run again without a change; return its values, ``(marks, m)``.

        Raises:
            MismatchError: A step does not come out as it was, to the last bit.
        """
        missed: dict[tuple[int, str], Joining] = {}
        for joining in JOININGS:
            miss = self._walked(joining, stop=True)
            if miss is None:
                return self.baseline
            missed.setdefault(miss, joining)
        furthest = max(missed)
        if not self._allow:
            raise not_the_run(self._log, *furthest)
        self.mismatch = furthest[0]
        self._walked(missed[furthest], stop=False)
        return self.baseline

    def _walked(self, joining: Joining, *, stop: bool) -> tuple[int, str] | None:
        """Take the run again; return the first step that came out otherwise, and what did.

        Args:
            joining: How losses are joined.
            stop: End at that step.
        """
        run, rows, first = self._execution, dict[int, Table](), None
        run.joining = joining
        self._restore(self._from, self._origin)
        if self._from in self.marks:
            rows[self._from] = self._values()
        for t in range(self._from, self.total):
            run.advance(self.step(t))
            first = first or self._difference(t)
            if first and stop:
                return first
            if t + 1 in self.marks:
                rows[t + 1] = self._values()
            self.advance()
        self.baseline = np.stack([rows[mark] for mark in self.marks])
        return first

    def _difference(self, t: int) -> tuple[int, str] | None:
        """Return what is not the run's after step ``t``, taken again."""
        run = self._execution
        if run.digest() != self._log.digest(t + 1):
            return t, "the parameters"
        found, logged = run.buffers(), self._log.buffers(t + 1)
        other = [n for n, b in logged.items() if not torch.equal(found[n].cpu(), b)]
        return (t, f"the buffer {other[0]!r}") if other else None

    def values(self, change: Change) -> Table:
        """Take one counterfactual run; return its values, ``(marks, m)``.

        Of a run with a loss that is NaN or infinite, values from there on are NaN. Runs that are
        asked for in the order of their starts take the least time.
        """
        found, start = self.baseline.copy(), self.start(change)
        if start == self.total:
            return found
        self._reach(start)
        self._execution.change = change
        self._restore(start, self._point)
        t = start
        try:
            for t in range(start, self.total):
                self._execution.advance(self.step(t))
                self.advance()
                if t + 1 in self.marks:
                    found[self.marks.index(t + 1)] = self._values()
        except NonFiniteError:
            found[[k for k, mark in enumerate(self.marks) if mark > t]] = np.nan
        finally:
            self._execution.change = None
        return found

    def reached(self, start: int) -> tuple[Step, Point]:
        """Return a step of the run and the state before it, taken again if need be."""
        self._reach(start)
        return self.step(start), self._point

    def is_run(self, found: State, t: int) -> bool:
        """Return whether a state is the run's before step ``t``, to the last bit."""
        logged = self._log.buffers(t)
        same = digest(found.parameters) == self._log.digest(t)
        return same and all(torch.equal(found.buffers[n], b) for n, b in logged.items())

    def lanes(self) -> Lanes | None:
        """Return what takes several runs together, if that is possible."""
        return self._execution.lanes()

    def _reach(self, start: int) -> None:
        """Take the run again, without a change, up to where one leaves it."""
        if start < self._at:
            self._at, self._point = self._from, self._origin
        if start > self._at:
            self._restore(self._at, self._point)
            for t in range(self._at, start):
                self._execution.advance(self.step(t))
            self._at, self._point = start, self._execution.point()

    def _restore(self, t: int, point: Point) -> None:
        self._execution.restore(self.step(min(t, self.total - 1)), point)

    def _values(self) -> Table:
        return self.measure(self._execution.state(), "a counterfactual run")
