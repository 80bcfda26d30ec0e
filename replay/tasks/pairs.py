"""Ready tasks of pairs, ``(inputs, target)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from replay.task import Task
from replay.tasks.building import built


def classification(
    model: nn.Module | Callable[[], nn.Module], train: Any, test: Any, **rest: Any
) -> Task:
    """Return a task of ``(inputs, class)`` pairs with the cross-entropy of each.

    Args:
        model: The model, or a function that builds it; its weights come from the log.
        train: Training examples by ID.
        test: Test examples by ID.
        **rest: Others of ``Task``.
    """
    return Task(built(model), _cross_entropies, train, test, **rest)


def regression(
    model: nn.Module | Callable[[], nn.Module], train: Any, test: Any, **rest: Any
) -> Task:
    """Return a task of ``(inputs, target)`` pairs with the mean squared error of each.

    Args:
        model: The model, or a function that builds it; its weights come from the log.
        train: Training examples by ID.
        test: Test examples by ID.
        **rest: Others of ``Task``.
    """
    return Task(built(model), _squared_errors, train, test, **rest)


def _cross_entropies(model: nn.Module, batch: Any) -> Tensor:
    inputs, classes = batch
    return F.cross_entropy(model(inputs), classes, reduction="none")


def _squared_errors(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    found = model(inputs)
    errors = F.mse_loss(found, targets.to(found).view_as(found), reduction="none")
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors
