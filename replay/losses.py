"""The losses of a task: one, or one for each of several optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracer.errors import TaskError, shown

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
    remedy = "Name the losses as TracingOptimizer named the optimizers"
    if len(optimizers) > 1:
        first = optimizers[0]
        remedy = (
            f"Have each take its own, optimizer[{first!r}].step(batch_ids=ids), and train again"
        )
    raise TaskError(
        f"Task(loss=...) has losses for {_listed(given)}, and a step was taken by {took}.\n"
        f"1. {remedy};\n"
        "2. or, if all of them step at once, pass one loss: that of which gradients were taken."
    )


def all_losses(given: Losses) -> Loss:
    """Return the loss of examples outside of steps: the sum, if each optimizer has its own."""
    if not isinstance(given, Mapping):
        return given
    each = list(given.values())
    return lambda model, batch: reduce(torch.add, (loss(model, batch) for loss in each))


def _listed(given: Mapping[Any, Loss]) -> str:
    return ", ".join(shown(str(name)) for name in given)
