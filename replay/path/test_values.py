"""Values of ``φ`` along the run, and each step's measured drop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.state import State, States, Transition
from replay.evaluate.test_side import Examples


@dataclass(frozen=True)
class Drop:
    """Values of ``φ`` around one step, float64 ``(m,)``.

    Attributes:
        before: ``φ(w_t; β_t)``.
        moved: ``φ(w_{t+1}; β_t)``.
        after: ``φ(w_{t+1}; β_{t+1})``.
    """

    before: Tensor
    moved: Tensor
    after: Tensor

    @property
    def measured(self) -> Tensor:
        """``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``."""
        return self.before - self.after


class Values:
    """``φ`` along the run, in either direction; each state is evaluated once.

    Args:
        examples: The test examples.
        run: The same at the run's states.
        window: The steps.
    """

    def __init__(self, examples: Examples, run: RunExamples, window: range) -> None:
        self._examples, self._run = examples, run
        self._reach = range(window.start, window.stop + 1)
        self._known: dict[int, Tensor] = {}

    def around(self, transition: Transition) -> Drop:
        """Return the values around a step; steps come in order, ascending or descending."""
        before, after, t = transition.before, transition.after, transition.step.index
        first, last = self._known.get(t), self._known.get(t + 1)
        if first is None:
            first = self._run.values(t, before, transition.name, self._reach)
        if last is None:  # the name of the state's own step: a NaN is reported where it shows
            last = self._run.values(t + 1, after, f"after {transition.name}", self._reach)
        moved = last
        if not before.same_buffers(after):
            mixed = State(after.parameters, before.buffers)
            moved = self._examples.values(mixed, f"after {transition.name}")
        self._known = {t: first, t + 1: last}
        return Drop(first.cpu(), moved.cpu(), last.cpu())


def drops(states: States, examples: Examples) -> Iterator[Drop]:
    """Yield the measured drop of every step of a run, for any optimizer."""
    steps = range(states.last)
    values = Values(examples, RunExamples(examples, states), steps)
    for t in steps:
        yield values.around(states.transition(t))
