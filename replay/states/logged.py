"""The states of a run, read from its log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from replay.evaluate.state import Optimizer, State, States, Transition
from replay.states.near import Near
from tracer.log.read.run_log import RunLog
from tracer.records import Step


class LoggedStates:
    """The states that a log holds; see ``States``.

    Args:
        log: The run.
        again: Makes what takes its steps again; by default nothing does.

    Attributes:
        log: The run.
        drift: Empty: nothing is computed.
    """

    drift: Mapping[int, float] = MappingProxyType({})

    def __init__(self, log: RunLog, again: Callable[[], States] | None = None) -> None:
        self.log, self._again = log, again
        self._taken: States | None = None
        self._stored: tuple[int, frozenset[int]] = -1, frozenset()  # as the log was that long
        self._kept, self._steps = Near[State](log), Near[Step](log)

    @property
    def last(self) -> int:
        """The number of the final state, ``T``."""
        return len(self.log)

    @property
    def stored(self) -> frozenset[int]:
        """The numbers of the states whose ``optimizer`` is on file."""
        if self._stored[0] != len(self.log):
            self._stored = len(self.log), frozenset(self.log.states())
        return self._stored[1]

    def proof(self) -> None:
        """Return None: nothing is computed."""

    def found(self, steps: range) -> dict[str, NDArray[Any]]:
        """Return nothing: nothing is computed."""
        return {}

    def adopt(self, found: Mapping[str, NDArray[Any]]) -> None:
        """Take over nothing."""

    def nearest(self, t: int) -> int:
        """Return ``t``: all states are on file."""
        return t

    def at(self, t: int) -> State:
        """Return ``w_t`` and ``β_t``, on the CPU, as logged."""
        known = self._kept.get(t)
        if known is None:
            known = State(self.log.parameters(t), self.log.buffers(t))
            if t < self.last:  # while training goes on, the final one's buffers may yet change
                self._kept.put(t, known)
        return known

    def step(self, t: int) -> Step:
        """Return step ``t`` as logged."""
        return self._steps.get(t) or self._steps.put(t, self.log.step(t))

    def transition(self, t: int, gradient: Mapping[str, Tensor] | None = None) -> Transition:
        """Return step ``t``; a state that the last one had is not read again."""
        return Transition(self.step(t), self.at(t), self.at(t + 1))

    def optimizer(self, t: int) -> Optimizer:
        """Return the optimizer's stored state before step ``t``.

        Raises:
            LogError: There is none, or it does not match its checksum.
        """
        groups = self.step(min(t, self.last - 1)).groups
        return Optimizer.of(self.log.state(t)["optimizer"], groups)

    def optimizer_again(self, t: int) -> Optimizer | None:
        """Return the optimizer before step ``t`` as its steps, taken again, lead to it."""
        if t in self.stored:
            return self.optimizer(t)
        return None if self._again is None else self._again().optimizer_again(t)

    def recorded(self, t: int) -> Optimizer | None:
        """Return the optimizer before step ``t`` to the bit, on file or taken again."""
        if t in self.stored:
            return self.optimizer(t)
        if self._taken is None and self._again is not None:
            self._taken = self._again()
        return None if self._taken is None else self._taken.recorded(t)
