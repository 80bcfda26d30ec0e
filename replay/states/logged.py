"""The states of a run and the steps between them, read from the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from replay.evaluate.state import State, Transition
from tracer.log.read.run_log import RunLog


@dataclass(frozen=True)
class LoggedStates:
    """The states that a log holds.

    Attributes:
        log: The run.
    """

    log: RunLog

    @property
    def last(self) -> int:
        """The number of the final state, ``T``."""
        return len(self.log)

    def at(self, t: int) -> State:
        """Return ``w_t`` and ``β_t``, on the CPU, as logged."""
        return state(self.log, t)


def state(log: RunLog, t: int) -> State:
    """Return ``w_t`` and ``β_t``; ``t = len(log)`` is the end of the run."""
    return State(log.parameters(t), log.buffers(t))


def transitions(log: RunLog) -> Iterator[Transition]:
    """Yield every step, in order; each snapshot is read once."""
    before = state(log, 0)
    for t in range(len(log)):
        after = state(log, t + 1)
        yield Transition(log.step(t), before, after)
        before = after
