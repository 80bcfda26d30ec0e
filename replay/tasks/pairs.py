"""Ready tasks of pairs, ``(inputs, target)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from replay.task import Task
from replay.tasks.building import built
from replay.tasks.targets import cross_entropies, squared_errors
from tracer.errors import TaskError, shown


def classification(
    model: nn.Module | Callable[[], nn.Module], train: Any, test: Any, **rest: Any
) -> Task:
    """Return a task of ``(inputs, class)`` pairs with the cross-entropy of each.

    A class may be a vector of probabilities instead of a whole number.

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
    inputs, classes = _pair(batch)
    return cross_entropies(_scores(model(inputs)), classes)


def _squared_errors(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = _pair(batch)
    return squared_errors(_scores(model(inputs)), targets)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and targets of a batch.

    Raises:
        TaskError: It is no pair of them.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    found = shown(batch)
    if isinstance(batch, Mapping):
        found = f"a mapping with {', '.join(map(repr, batch))}"
    elif isinstance(batch, (tuple, list)):
        found = f"{len(batch)} parts, {', '.join(type(part).__name__ for part in batch)}"
    raise TaskError(
        f"a batch of this task is a pair, inputs and a tensor of targets; found {found}.\n"
        "1. Pass collate=, a function that makes (inputs, targets) of a list of examples.\n"
        "2. Or write a Task with a loss of your own."
    )


def _scores(found: Any) -> Tensor:
    """Return what a model returned.

    Raises:
        TaskError: It is no tensor.
    """
    if not isinstance(found, Tensor):
        raise TaskError(
            f"the model of this task returns a tensor of scores, found {type(found).__name__}.\n"
            "1. Write a Task whose loss takes what you need of it."
        )
    return found
