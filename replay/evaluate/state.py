"""A state of the run, a step between two of them, and the door to both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from replay.evaluate.proof import Proof
from tracer.joined import NAMES
from tracer.log.read.run_log import RunLog
from tracer.records import ParameterGroup, Step


@dataclass(frozen=True)
class State:
    """Parameters ``w_t`` and buffers ``β_t``, on the CPU."""

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
        return step_name(self.step)

    def along(self, u: float) -> State:
        """Return the state ``w_t − uΔ_t`` with the buffers ``β_t``; ``u`` is from 0 to 1."""
        if u in (0.0, 1.0):
            return State((self.after if u else self.before).parameters, self.before.buffers)
        moved = self.after.parameters
        return State(
            {
                name: torch.lerp(w.double(), moved[name].double(), u)
                if w.is_floating_point()
                else w
                for name, w in self.before.parameters.items()
            },
            self.before.buffers,
        )


def stacked(states: Sequence[State]) -> dict[str, Tensor]:
    """Return parameters of several states, ``(S, *shape)`` each."""
    names = states[0].parameters
    return {name: torch.stack([one.parameters[name] for one in states]) for name in names}


class Optimizer(NamedTuple):
    """What torch's ``state_dict`` of a run's optimizer holds, by parameter.

    Attributes:
        states: By torch's names; a parameter that has no state yet is absent.
        groups: The group that each parameter is in.
    """

    states: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, stored: Mapping[str, Any], groups: Sequence[ParameterGroup]) -> Optimizer:
        """Return it by the names of its parameters: its own, or those of a step's groups."""
        names = members(stored, groups)
        states = {names[int(k)]: state for k, state in stored["state"].items() if str(k).isdigit()}
        held = {names[k]: group for group in stored["param_groups"] for k in group["params"]}
        return cls(states, held)


def members(stored: Mapping[str, Any], groups: Sequence[ParameterGroup]) -> list[str]:
    """Return the names of the parameters of a ``state_dict``, by number.

    Args:
        stored: That of a full state; of several optimizers it has the names.
        groups: Of a step there, which are those of the only optimizer.
    """
    known: list[str] = stored.get(NAMES) or [name for group in groups for name in group.names]
    return known


class States(Protocol):
    """The one door to a run's states: ``t`` is before step ``t``, ``last`` the final one.

    Whoever walks along the steps, in either direction, causes each state to be made only once.
    """

    @property
    def log(self) -> RunLog:
        """The run's log: its path and what it says of the whole run."""
        ...

    @property
    def last(self) -> int:
        """The number of the final state, ``T``."""
        ...

    @property
    def stored(self) -> frozenset[int]:
        """The numbers of the states whose ``optimizer`` is on file."""
        ...

    @property
    def drift(self) -> Mapping[int, float]:
        """How far computed parameters were from a snapshot, where they were not the same.

        Relative to the way from the snapshot before.
        """
        ...

    def proof(self) -> Proof | None:
        """Return how much of what was computed is the run's to the bit; None if nothing was."""
        ...

    def found(self, steps: range) -> dict[str, NDArray[Any]]:
        """Return what computing states has found of some steps, for another process."""
        ...

    def adopt(self, found: Mapping[str, NDArray[Any]]) -> None:
        """Take over what another process has found."""
        ...

    def nearest(self, t: int) -> int:
        """Return the number of the state nearest to ``t`` that costs no more than reading it."""
        ...

    def at(self, t: int) -> State:
        """Return ``w_t`` and ``β_t``."""
        ...

    def step(self, t: int) -> Step:
        """Return step ``t`` as logged."""
        ...

    def transition(self, t: int, gradient: Mapping[str, Tensor] | None = None) -> Transition:
        """Return step ``t`` with the states before and after it.

        Args:
            t: The step.
            gradient: Of its objective at ``at(t)``, if it is known: it need not be computed again.
        """
        ...

    def optimizer(self, t: int) -> Optimizer:
        """Return the optimizer before step ``t``, one of ``stored``."""
        ...

    def optimizer_again(self, t: int) -> Optimizer | None:
        """Return the optimizer before step ``t``, from the last of ``stored`` before it.

        Its steps are taken again; None if they do not prove to be the run's, bit for bit.
        """
        ...

    def recorded(self, t: int) -> Optimizer | None:
        """Return the same where its last bit counts: gradients have to be the run's own, too."""
        ...


def step_name(step: Step) -> str:
    """Return how messages call a step."""
    return f"step {step.index}"
