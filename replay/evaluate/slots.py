"""States of the run that are asked for one by one, and computed some in one pass.

A pass for several states rounds each one alike whatever the others hold, but not alike in all
places: so state t is always in slot ``t mod 16`` of a stack of 16, and where a slot's own state is
not needed another one fills it. No bit then depends on which states are asked for, when, by whom,
or within which budget. What is not right of a slot is left to a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from replay.evaluate.binding import BoundModel
from tracer.errors import GradientError, LogError, NonFiniteError, TaskError

T = TypeVar("T")
Given = TypeVar("Given")
SLOTS = 16
LARGEST = 1 << 17  # elements of a model: above, arithmetic is what takes time
_PRODUCTS = 1 << 23  # ... times examples
# what is wrong with a state is said when it is that state's turn
AT_ITS_TURN = (NonFiniteError, TaskError, LogError)


class Work(Protocol[Given, T]):
    """What is computed of states of a run, together and alone."""

    def given(self, t: int) -> Given | None:
        """Return what a pass needs of a state; None if it is not like that of state 0."""

    def stack(self, given: Sequence[Given]) -> Sequence[T | None]:
        """Compute some states in one pass; None where what is found is not right."""

    def alone(self, t: int) -> T:
        """Compute a state by a pass of its own."""

    def unlike(self, found: T) -> str | None:
        """Return which parameter of such a pass is in no linear layer of one row an example."""

    def agree(self, found: T, expected: T) -> bool:
        """Return whether a slot has what a pass of its own has, but for rounding."""


class Slots(Generic[Given, T]):
    """What some work finds at the states of a run.

    Args:
        work: The work.
        bound: The model.
        name: What is computed, for messages and to know it again.
        refused: Why no stack is to be tried; None if one is.
    """

    def __init__(
        self, work: Work[Given, T], bound: BoundModel, name: str, refused: Callable[[], str | None]
    ) -> None:
        self._work, self._bound, self._name, self._refused = work, bound, name, refused
        self._found: dict[int, T | None] = {}
        self._since = 0

    @cached_property
    def why(self) -> str | None:
        """Why states are taken one by one; None if they are stacked. That is tried at state 0."""
        why, known = self._refused(), self._bound.apart
        if why is None and self._name not in known:
            known[self._name] = self._trial()
        return why or known[self._name]

    def get(self, t: int, reach: range, where: str) -> T | None:
        """Return what a slot has of a state; None if a pass of its own has to be taken.

        Args:
            t: The state.
            reach: States that will be asked for, too, as far as is known.
            where: For messages.

        Raises:
            GradientError: A pass of its own gives another thing.
        """
        if self.why is not None:
            return None
        if t not in self._found:
            self._found = {}  # before there are others
            self._found = self._computed(t, reach)
        found = self._found[t]
        if found is not None and self.is_due():
            self.require(where, found, self._work.alone(t))
        return found

    def is_due(self) -> bool:
        """Count what was found in a pass for several; return whether it is to be proven."""
        self._since += 1
        if not self._bound.engine.due and self._since < self._bound.audit:
            return False
        self._since = 0
        return True

    def require(self, where: str, found: T, alone: T) -> None:
        """Raise GradientError if a pass of its own gives another thing."""
        if not self._work.agree(found, alone):
            raise GradientError(
                f"{where}: {self._name} are others in one pass for {SLOTS} states than in one "
                "for this state, as they were not at state 0: something beside parameters and "
                "data decides what the model does.\n"
                "  1. Take each state alone: audit=1 (--audit 1).\n"
                "  2. Let the model's forward depend on its parameters, flags and inputs only."
            )

    def _computed(self, t: int, reach: range) -> dict[int, T | None]:
        first = t - t % SLOTS
        members = [k for k in range(first, first + SLOTS) if k in reach or k == t]
        known = {k: one for k in members if (one := self._given(k)) is not None}
        if not known:
            return dict.fromkeys(members)
        rows = self._passed(known)
        if rows is None:  # one of them may be why: each is asked
            own = {k: self._passed({k: one}) for k, one in known.items()}
            return {k: row[k] if (row := own.get(k)) else None for k in members}
        return {k: rows.get(k) for k in members}

    def _given(self, t: int) -> Given | None:
        try:
            return self._work.given(t)
        except AT_ITS_TURN:
            return None

    def _passed(self, known: dict[int, Given]) -> dict[int, T | None] | None:
        """Return what a stack gives, None if it fails; any of the states fills a slot besides."""
        some = next(iter(known.values()))
        own = {k % SLOTS: one for k, one in known.items()}
        try:
            rows = self._work.stack([own.get(slot, some) for slot in range(SLOTS)])
        except Exception:  # passes of their own say what is wrong
            return None
        return {k: rows[k % SLOTS] for k in known}

    def _trial(self) -> str | None:
        """Return why states cannot be stacked, by state 0; None if nothing is in the way."""
        engine = self._bound.engine
        due = engine.due
        try:
            given = self._work.given(0)
            expected = self._work.alone(0)
        except (*AT_ITS_TURN, GradientError):
            return "state 0 cannot be evaluated"
        finally:
            if due:  # of the state that is asked for
                engine.audit()
        if given is None:
            return "step 0 has several micro-batches, or its batch other things than tensors"
        if (name := self._work.unlike(expected)) is not None:
            return f"{name} is not in one linear layer that sees one row of each example"
        try:
            found = self._work.stack([given] * SLOTS)[0]
        except Exception as error:
            return str(error).partition("\n")[0].partition(". ")[0]
        if found is None:
            return "in one pass with others, state 0 is not finite, or parts do not add up"
        return None if self._work.agree(found, expected) else "alone, state 0 gives other numbers"


def is_large(bound: BoundModel, examples: int) -> str | None:
    """Return whether a pass of a model for so many examples is arithmetic, in words."""
    size = sum(parameter.numel() for parameter in bound.parameters.values())
    if size > LARGEST or size * examples > _PRODUCTS:
        return f"the model is large: {size:,} parameters, {examples} examples"
    often = bound.audit < SLOTS
    return f"every {_ordinal(bound.audit)}pass is proven" if often else None


def _ordinal(k: int) -> str:
    """Return "3rd " of 3, and nothing of 1."""
    return {1: "", 2: "2nd ", 3: "3rd "}.get(k, f"{k}th ")
