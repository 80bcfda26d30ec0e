"""Test examples at the states of the run: some states in one pass, where that gives the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.binding import BoundModel
from replay.evaluate.slots import Slots, is_large
from replay.evaluate.state import State, States, Transition, stacked
from replay.evaluate.test_side import Examples
from replay.evaluate.together import Together, refused
from replay.gradients.forms.per_example import PerExample
from replay.gradients.stacks import Stack, are_alike, unlike


class RunExamples:
    """Some examples at the states of a run.

    Args:
        examples: The examples.
        states: The run's states.
    """

    def __init__(self, examples: Examples, states: States) -> None:
        self._examples, self._states = examples, states
        of = examples.called
        self._slopes, self._heights = _Gradients(examples, states), _Values(examples, states)
        test, value = examples.models.test, examples.models.value
        self._gradients = Slots(self._slopes, test, f"gradients of {of}", self._refused)
        self._values = Slots(self._heights, value, f"values of {of}", lambda: self._gradients.why)

    @property
    def why(self) -> dict[str, str | None]:
        """Why gradients and values are taken state by state; None if they are stacked."""
        return {"test gradients": self._gradients.why, "test values": self._values.why}

    def gradients(
        self,
        t: int,
        state: State,
        where: str,
        reach: range = range(0),
        names: Collection[str] | None = None,
    ) -> PerExample:
        """Return ``∇φ`` of each example at state ``t``.

        Args:
            t: The number of the state.
            state: The same.
            where: For messages.
            reach: What will be asked for besides.
            names: The parameters that are needed; None is all.
        """
        found = self._gradients.get(t, reach, where)
        return self._examples.gradients(state, where, None, names) if found is None else found

    def values(self, t: int, state: State, where: str, reach: range = range(0)) -> Tensor:
        """Return ``φ`` of each example at state ``t``, float64."""
        found = self._values.get(t, reach, where)
        return self._examples.values(state, where) if found is None else found

    @property
    def together(self) -> bool:
        """Whether states are taken together."""
        return not any(self.why.values())

    def at_points(self, states: Mapping[str, Tensor]) -> tuple[Stack, Tensor] | None:
        """Return gradients and values at any states, ``(S, *shape)`` each; None if that fails."""
        try:
            found = self._slopes.gradients(states)
            return found, self._heights.together.values(states, self._heights.batch())
        except Exception:  # passes of their own say what is wrong
            return None

    def prove(self, now: Transition, u: float, found: PerExample) -> None:
        """Count what was found at a point of a step; where it is due, compare it with one alone."""
        if self._gradients.is_due():
            alone = self._examples.gradients(now.along(u), now.name)
            self._gradients.require(now.name, found, alone)

    def _refused(self) -> str | None:
        if self._examples.compares:
            return "the model decides by numbers, so each state is compared in other company"
        models, among = self._examples.models, self._examples.among
        return is_large(models.test, among) or refused(models.test) or refused(models.value)


class _Side:
    """One of the two copies that examples are evaluated on."""

    def __init__(self, examples: Examples, states: States, bound: BoundModel) -> None:
        self.examples, self.states, self.bound = examples, states, bound
        self.together = Together(examples.function, bound)

    def given(self, t: int) -> State:
        return self.states.at(t)

    def batch(self) -> Any:
        """Return the batch of all, to be changed at will; the model is in eval mode."""
        self.bound.eval_mode.enter()
        return self.examples.batches.of(range(len(self.examples)), self.bound.dtype)


class _Gradients(_Side):
    def __init__(self, examples: Examples, states: States) -> None:
        super().__init__(examples, states, examples.models.test)

    def gradients(self, states: Mapping[str, Tensor]) -> Stack:
        return self.together.gradients(states, [self.batch()], list(self.bound.moving()))

    def stack(self, given: Sequence[State]) -> list[PerExample | None]:
        found = self.gradients(stacked(given))
        return [found.at(s) for s in range(len(given))]

    def alone(self, t: int) -> PerExample:
        return self.examples.gradients(self.given(t), f"step {t}")

    def unlike(self, found: PerExample) -> str | None:
        return unlike(found)

    def agree(self, found: PerExample, expected: PerExample) -> bool:
        return self.bound.engine.steady and are_alike(found, expected)


class _Values(_Side):
    def __init__(self, examples: Examples, states: States) -> None:
        super().__init__(examples, states, examples.models.value)

    def stack(self, given: Sequence[State]) -> list[Tensor | None]:
        found = self.together.values(stacked(given), self.batch())
        right = found.isfinite().all(1).tolist()
        return [row if fine else None for row, fine in zip(found, right, strict=True)]

    def alone(self, t: int) -> Tensor:
        return self.examples.values(self.given(t), f"step {t}")

    def unlike(self, found: Tensor) -> str | None:
        return None

    def agree(self, found: Tensor, expected: Tensor) -> bool:
        return bool(torch.equal(found, expected)) or self.bound.is_close(found, expected)
