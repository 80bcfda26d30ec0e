"""A state of the run, and a step between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


class States(Protocol):
    """The states of a run by number: ``t`` is before step ``t``, ``last`` the final one."""

    @property
    def last(self) -> int:
        """The number of the final state, ``T``."""
        ...

    def at(self, t: int) -> State:
        """Return ``w_t`` and ``β_t``."""
        ...


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
