"""Gradients of steps that processes of a host hand on to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from replay.evaluate.state import States
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms.packed import packed, unpacked
from replay.processes.handing import Handing, Work
from replay.steps.schedule import Visit

Sequences = Callable[[Work[TrainedStep], Sequence[Visit]], Handing[TrainedStep] | None]


class HandedSteps:
    """Steps in the order in which a walk asks for them.

    Args:
        visits: All of them.
        states: The run's states.
        compute: Computes one.
        begin: Begins the sequence of some work, if anybody shares it.
    """

    def __init__(
        self,
        visits: Sequence[Visit],
        states: States,
        compute: Callable[[int, bool], TrainedStep],
        begin: Sequences,
    ) -> None:
        self._visits, self._states, self._compute = visits, states, compute
        self._sequence, self._next = begin(self, visits), 0

    def get(self, t: int, *, keep: bool) -> TrainedStep | None:
        """Return a step, if it is the next one; None of others."""
        n = self._next
        if self._sequence is None or n == len(self._visits) or self._visits[n] != (t, keep):
            return None
        self._next = n + 1
        return self._sequence.get(n)

    def end(self) -> None:
        """Wait until others have read what this process found."""
        if self._sequence is not None:
            self._sequence.close()

    def do(self, k: int) -> TrainedStep:
        """Compute a step."""
        return self._compute(*self._visits[k])

    def is_ready(self, k: int) -> bool:
        """Return whether a state can be read: one that is computed needs the steps before it."""
        t, _ = self._visits[k]
        return self._states.nearest(t) == t

    def packed(self, found: TrainedStep) -> dict[str, Any] | None:
        """Return what is found of a step, where all of it is stored."""
        batches = [packed(one) for one in found.batches]
        if found.sparse or None in batches:
            return None
        sums = {"gradient": found.gradient, "penalty": found.penalty}
        return {"batches": batches, "ids": found.ids, **sums}

    def unpacked(self, packed: dict[str, Any]) -> TrainedStep:
        """Return what another process found."""
        batches = [unpacked(one) for one in packed["batches"]]
        return TrainedStep(batches, packed["ids"], packed["gradient"], packed["penalty"])
