"""The states of a run whose log has snapshots only here and there: computed, and proved.

Between two snapshots the run is taken again, step by step, and each step's parameters are compared
with the digest that the log has of them. Where bits differ (another machine, another number of
threads), the drift is measured at the next snapshot, and the run goes on from what that says.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from replay.evaluate.proof import Proof, proof_of
from replay.evaluate.state import Optimizer, State, Transition
from replay.states.environment import differences
from replay.states.execution import JOININGS, Execution, Joining, Point
from replay.states.findings import Findings
from replay.states.logged import LoggedStates
from replay.states.near import Near
from replay.states.points import Points, distance, halves
from tracer.log.read.run_log import RunLog
from tracer.records import Step

_TRIES = 3  # steps on which all joinings of losses are tried, in vain
_SAME_GRADIENT = (
    "that step's gradients are the run's, as far as their norms tell, so something beside them "
    "may have moved parameters: a write between two steps, or another state of the optimizer"
)
_OTHER_GRADIENT = (
    "that step's gradients differ already: other numbers, or the same ones added up in another "
    "order (threads, the order of a batch, how the loss is written)"
)


class ReExecutedStates(Findings):
    """The states between the snapshots of a log; see ``States``.

    Args:
        log: The run.
        execution: Takes its steps.
        budget: Bytes for states that may be needed again.

    Attributes:
        log: The run.
    """

    def __init__(self, log: RunLog, execution: Execution, budget: int) -> None:
        super().__init__(len(log))
        self.log, self._execution = log, execution
        self._logged = LoggedStates(log)
        self._joinings: dict[int, Joining] = {}  # that are right, by number of micro-batches
        self._tries = _TRIES
        self._norms = False  # whether a step's gradients have to have the run's norms
        self._shares: bool | None = None  # whether the replay's gradients are the run's to the bit
        self._step: Step | None = None  # the last one that was asked for
        self._now: int | None = None  # where the execution stands
        self._kept = Near[State](log)
        self._points = Points(budget)

    @property
    def last(self) -> int:
        """The number of the final state, ``T``."""
        return self._logged.last

    @property
    def stored(self) -> frozenset[int]:
        """The numbers of the snapshots."""
        return self._logged.stored

    def step(self, t: int) -> Step:
        """Return step ``t`` as logged."""
        if self._step is None or self._step.index != t:
            self._step = self.log.step(t)
        return self._step

    def optimizer(self, t: int) -> Optimizer:
        """Return the optimizer's stored state before step ``t``; see ``LoggedStates``."""
        return self._logged.optimizer(t)

    def optimizer_again(self, t: int) -> Optimizer | None:
        """Return the optimizer before step ``t``; None where steps that lead to it differ."""
        start = max(k for k in self.stored if k <= t)
        if start == t:
            return self.optimizer(t)
        self._reach(t)
        if not self.proved.issuperset(range(start, t)):
            return None
        return Optimizer.of(self._execution.point()["optimizer"], self.step(t - 1).groups)

    def recorded(self, t: int) -> Optimizer | None:
        """Return the optimizer before step ``t`` to the bit; None where steps differ.

        Parameters that are the run's do not prove its state, nor does a gradient that comes near:
        from now on gradients are the run's own, and so are their norms.
        """
        if not self._norms:
            self._norms, self._shares, self._now = True, False, None
            self._points.clear()
        return self.optimizer_again(t)

    def proof(self) -> Proof:
        """Return what was found so far."""
        why = differences(self.log.metadata)
        return proof_of(self.proved, self.unproved, self.drift, why, self.shows)

    def nearest(self, t: int) -> int:
        """Return the number of the nearest snapshot."""
        return min(self.stored, key=lambda k: abs(k - t))

    def at(self, t: int) -> State:
        """Return ``w_t`` and ``β_t``, on the CPU."""
        known = self._kept.get(t)
        if known is not None:
            return known
        if t in self.stored and t != self._now:
            found = self._logged.at(t)
        else:
            self._reach(t)
            found = self._here(t)
        return self._kept.put(t, found)

    def point(self, t: int) -> Point:
        """Return the full state before step ``t``, computed from the one before it."""
        if self._now is None or not self._now <= t:
            self._reach(t)
        while self._now != t:
            self._advance()
        return self._execution.point()

    def transition(self, t: int, gradient: Mapping[str, Tensor] | None = None) -> Transition:
        """Return step ``t``, proved if its digest is met."""
        before = self.at(t)
        known = self._kept.get(t + 1)
        if known is not None and (t in self.proved or t in self.unproved):
            return Transition(self.step(t), before, known)
        self._reach(t)
        if gradient is None or not self._advance_with(gradient):
            self._reach(t)
            self._advance()
        return Transition(self.step(t), before, self._kept.put(t + 1, self._here(t + 1)))

    def _here(self, t: int) -> State:
        return State(self._execution.parameters(), self.log.buffers(t))

    def _reach(self, t: int) -> None:
        """Stand before step ``t``."""
        if self._now == t:
            return
        known = [k for k in (*self.stored, *self._points) if k <= t]
        start = max(known)
        if self._now is None or not start <= self._now <= t:
            self._go(start)
        assert self._now is not None
        for k in halves(self._now, t):
            while self._now < k:
                self._advance()
            if k < t:
                self._points.keep(k, self._execution.point())

    def _go(self, t: int) -> None:
        """Take up a state that is known."""
        point = self._points.get(t)
        point = self.log.state(t) if point is None else point
        self._execution.restore(self.step(min(t, self.last - 1)), point)
        self._now = t

    def _advance(self) -> None:
        """Take the next step, and compare what it leads to with its digest."""
        assert self._now is not None
        t, run = self._now, self._execution
        step, buffers, digest = self.step(t), self.log.buffers(t), self.log.digest(t + 1)
        run.joining = self._joinings.get(count := len(step.micro_batches), JOININGS[0])
        start = run.point() if count not in self._joinings and self._tries else None
        run.take(step, buffers)
        met = self._met(digest)
        if start is not None and not met:
            met = self._other_joinings(step, start, digest)
        if met:
            self._joinings[count] = run.joining
        self._now = t + 1
        (self.proved if met else self.unproved).add(t)
        (self.unproved if met else self.proved).discard(t)
        if not met and t == min(self.unproved):
            self.shows = _SAME_GRADIENT if run.applied.met else _OTHER_GRADIENT
        if not met and t + 1 in self.stored:
            self._resynchronise(t + 1)

    def _advance_with(self, gradient: Mapping[str, Tensor]) -> bool:
        """Take the next step with a gradient that is known; return whether its digest was met.

        Where it was not, the step is still to be taken, and the others are not tried like this.
        """
        assert self._now is not None
        t, run = self._now, self._execution
        if self._shares is False or not run.can_take(gradient):
            return False
        start = run.point() if self._shares is None else None
        run.take_with(self.step(t), gradient, self.log.buffers(t + 1))
        # another gradient may lead to the same parameters, but not to the same state
        self._shares = run.digest() == self.log.digest(t + 1) and run.applied.met
        if self._shares:
            self._now = t + 1
            self.proved.add(t)
            self.unproved.discard(t)
        elif start is not None:
            run.restore(self.step(t), start)
        else:  # what was kept came by the same way
            self._now = None
            self._points.clear()
        return self._shares

    def _other_joinings(self, step: Step, start: Point, digest: int | None) -> bool:
        """Try the other ways in which a loop may have joined its losses; return whether one did."""
        run = self._execution
        for joining in (*JOININGS[1:], JOININGS[0]):  # the last one stays if none is right
            run.joining = joining
            run.restore(step, start)
            run.take(step, self.log.buffers(step.index))
            if self._met(digest):
                return True
        self._tries -= 1
        return False

    def _met(self, digest: int | None) -> bool:
        """Return whether the step that was taken is the run's."""
        run = self._execution
        return run.digest() == digest and (not self._norms or run.applied.met)

    def _resynchronise(self, t: int) -> None:
        """Measure how far the execution is from a snapshot, and go on from that."""
        before = max((k for k in self.stored if k < t), default=0)
        snapshot = self.log.parameters(t)
        moved = distance(snapshot, self.log.parameters(before))
        gap = distance(self._execution.parameters(), snapshot)
        self.drift[t] = gap / moved if moved else float(gap > 0)
        self._points.forget_from(t)
        self._now = None
        self._execution.restore(self.step(min(t, self.last - 1)), self.log.state(t))
        self._now = t
