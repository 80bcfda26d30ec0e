"""Test gradients at both ends of each step, computed once and handed on to the next."""

from __future__ import annotations

from replay.evaluate.run_examples import RunExamples
from replay.evaluate.state import State, Transition
from replay.gradients.forms.per_example import PerExample


class EndGradients:
    """Test gradients at both ends of a step, computed at most once and handed on.

    Args:
        examples: The test examples.
        window: The steps.
    """

    def __init__(self, examples: RunExamples, window: range) -> None:
        self._examples, self._reach = examples, range(window.start, window.stop + 1)
        self._transition: Transition | None = None
        self._found: dict[int, PerExample] = {}  # by the state's number, buffers as in the step

    def move(self, transition: Transition) -> None:
        """Go to the next step, in either direction."""
        last, self._transition = self._transition, transition
        same = last is not None and last.before.same_buffers(transition.before)
        t = transition.step.index
        self._found = {k: g for k, g in self._found.items() if same and k in (t, t + 1)}

    def known(self, states: set[int], wanted: frozenset[int]) -> dict[int, PerExample]:
        """Return gradients at some states, by number, where buffers are the state's own."""
        now = self._transition
        assert now is not None
        t = now.step.index
        same = now.before.same_buffers(now.after)
        return {k: self.get(k - t) for k in sorted(states & wanted) if k == t or same}

    def get(self, u: int) -> PerExample:
        """Return the gradients before (0) or after (1) the step, buffers as before it."""
        transition = self._transition
        assert transition is not None
        k = transition.step.index + u
        if k not in self._found:
            state = transition.after if u else transition.before
            at = State(state.parameters, transition.before.buffers)
            self._found[k] = self._examples.gradients(k, at, transition.name, self._reach)
        return self._found[k]
