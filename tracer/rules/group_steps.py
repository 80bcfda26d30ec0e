"""Optimizers of pytorch_optimizer count the steps of a group, not those of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tracer.rules.arithmetic import no_steps
from tracer.rules.rule import State, UpdateRule


class GroupSteps(UpdateRule):
    """A rule whose state has the ``step`` of the group."""

    def idle(self, w: Tensor, state: State) -> State:
        known = state or self.initial(w, {})
        return {**known, "step": known["step"] + 1}


def steps_of(group: Mapping[str, Any]) -> Tensor:
    """Return how many steps a group has taken, with or without a gradient of a parameter."""
    return no_steps().add_(group["step"])
