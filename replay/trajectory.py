"""The stream of steps with the states on both sides, read from the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.reader import RunLog
from tracer.records import Step


@dataclass(frozen=True)
class State:
    """Parameters ``w_t`` and buffers ``β_t``, on the CPU, as logged."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def same_buffers(self, other: State) -> bool:
        """Return whether both hold bitwise the same buffers."""
        return self.buffers.keys() == other.buffers.keys() and all(
            value is other.buffers[name] or torch.equal(value, other.buffers[name])
            for name, value in self.buffers.items()
        )


@dataclass(frozen=True)
class Transition:
    """Step ``t`` with the states before and after it."""

    step: Step
    before: State
    after: State

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"step {self.step.index}"


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
