"""The groups of one optimizer as a step is about to use them, and the gradients that it applies."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.records import ParameterGroup
from tracer.watch.gradients import Gradients, measured


@dataclass(frozen=True)
class Seen:
    """What was seen of one optimizer before a step.

    Attributes:
        groups: Its parameter groups, without norms.
        gradients: What it applied.
    """

    groups: tuple[ParameterGroup, ...]
    gradients: Gradients


class GroupLook:
    """Looks at the groups of one optimizer.

    Args:
        optimizer: The optimizer.
        number: Its number among those of the run.
        names: Of the model's parameters, by ``id``.
    """

    def __init__(self, optimizer: Optimizer, number: int, names: Mapping[int, str]) -> None:
        self._optimizer, self._number, self._names = optimizer, number, names
        self._members: list[Tensor] = []  # of the groups, as they were last
        self._sizes: list[int] = []
        self._names_by_group: list[tuple[str, ...]] = []
        self._known: dict[int, tuple[list[Any], dict[str, float]]] = {}  # values, as numbers

    def hyperparameters(self) -> list[str]:
        """Return the names of the numbers that its groups have now."""
        names: dict[str, None] = {}
        for group in self._optimizer.param_groups:
            names.update(dict.fromkeys(self._numbers(group)))
        return list(names)

    def seen(self, known: Collection[str]) -> Seen:
        """Return what it is about to apply; inside ``torch.no_grad()``.

        Args:
            known: The names of the numbers that the log has of its groups.

        Raises:
            TracingError: They hold a parameter that is not logged.
        """
        parameters = self._grouped()
        groups = tuple(
            [
                ParameterGroup(names, self._remembered(k, group, known), optimizer=self._number)
                for k, (names, group) in enumerate(
                    zip(self._names_by_group, self._optimizer.param_groups, strict=True)
                )
            ]
        )
        names = [name for group in self._names_by_group for name in group]
        scale = getattr(self._optimizer, "grad_scale", None)
        return Seen(groups, measured(names, [p.grad for p in parameters], scale))

    def _grouped(self) -> list[Tensor]:
        """Return the parameters of all groups; looks up again who they are if they changed."""
        groups = self._optimizer.param_groups
        found = [p for group in groups for p in group["params"]]
        sizes = [len(group["params"]) for group in groups]
        if sizes != self._sizes or not all(map(is_, found, self._members)):
            check_parameters(self._optimizer, self._names)
            names = iter([self._names[id(p)] for p in found])
            self._names_by_group = [tuple(islice(names, size)) for size in sizes]
            self._members, self._sizes = found, sizes
        return found

    def _remembered(
        self, k: int, group: Mapping[str, Any], columns: Collection[str]
    ) -> dict[str, float]:
        """Return the numbers of group k, the very last ones if nothing was assigned since."""
        values = [group.get(key) for key in ("lr", *self._optimizer.defaults)]
        known = self._known.get(k)
        if known is not None and all(map(is_, values, known[0])):
            return known[1]
        numbers = self._numbers(group)
        for name in numbers:
            if name not in columns:
                raise TracingError(
                    f"{name!r} of group {k} is a number now and was none at the first step: a "
                    "log's rows have one layout; give the optimizer its hyperparameters, in their "
                    "final form, before."
                )
        self._known.pop(k, None)
        if all(_unchanging(value) for value in values):
            self._known[k] = values, numbers
        return numbers

    def _numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """Return a group's numeric hyperparameters; tuples are spread, None is NaN."""
        values: dict[str, Any] = {}
        for key in ("lr", *self._optimizer.defaults):
            value = group.get(key)
            if isinstance(value, (tuple, list)):
                values.update({f"{key}.{k}": one for k, one in enumerate(value)})
            else:
                values[key] = value
        numbers = {key: _number(value) for key, value in values.items()}
        return {key: number for key, number in numbers.items() if number is not None}


def check_parameters(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Raise TracingError for a parameter that the model does not have."""
    for k, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise TracingError(
                    f"group {k} of the optimizer holds a parameter of shape "
                    f"{tuple(parameter.shape)} that is not in the model; pass the model whose "
                    "parameters it moves."
                )


def _number(value: Any) -> float | None:
    """Return a value as a number, None as NaN; None if it is neither."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        value = value.item()
    if value is None:
        return math.nan
    return float(value) if isinstance(value, Real) else None


def _unchanging(value: Any) -> bool:
    """Return whether the same object always means the same number; tensors do not."""
    if isinstance(value, tuple):
        return all(_unchanging(one) for one in value)
    return value is None or isinstance(value, (bool, int, float, str))
