"""The losses of a task: one, or one for each of several optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from tracer.errors import TaskError, UnsupportedRuleError, shown

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Losses: TypeAlias = Loss | Mapping[Any, Loss]


def losses_of(given: Losses) -> dict[str, Loss]:
    """Return the loss of the steps of each optimizer, by name; that of all steps by no name."""
    if isinstance(given, Mapping):
        return {str(name): loss for name, loss in given.items()}
    return {"": given}


def loss_of_step(given: Losses, optimizers: Sequence[str]) -> Loss:
    """Return the loss of a step.

    Args:
        given: As a task has it.
        optimizers: Names of those of several optimizers that took the step.

    Raises:
        TaskError: There is none.
    """
    if not isinstance(given, Mapping):
        return given
    known = losses_of(given)
    if len(optimizers) == 1 and optimizers[0] in known:
        return known[optimizers[0]]
    took = " and ".join(map(shown, optimizers)) or "the only optimizer"
    raise TaskError(
        f"Task(loss=...) has losses for {_listed(given)}, and a step was taken by {took}.\n"
        "1. Name the losses as TracingOptimizer named the optimizers;\n"
        "2. or, if all of them step at once, pass one loss: that of which gradients were taken."
    )


def only_loss(given: Losses) -> Loss:
    """Return the loss of examples outside of steps.

    Raises:
        UnsupportedRuleError: There are several, each of the steps of one optimizer.
    """
    if not isinstance(given, Mapping):
        return given
    raise UnsupportedRuleError(
        "a sum over checkpoints (tracincp) takes the loss of training examples outside of steps, "
        f"and Task(loss=...) has losses for {_listed(given)}.\n"
        '1. Ask for methods=("tracin", "ideal"), which know whose step each one was;\n'
        "2. or take a task with one of these losses."
    )


def _listed(given: Mapping[Any, Loss]) -> str:
    return ", ".join(shown(str(name)) for name in given)
