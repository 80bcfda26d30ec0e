"""What a step is about to do: hyperparameters, and the size of the gradient that it applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks

from tracer.errors import TracingError
from tracer.records import GRADIENT_NORM, ParameterGroup, Step
from tracer.watch.model_layout import ModelLayout


@dataclass(frozen=True)
class Gradients:
    """Gradients as a step applies them.

    Attributes:
        norms: Gives the Euclidean norm of each parameter's, group by group, None where it has
            none; waits for the device, so not in the training thread.
        without: Parameters of the optimizer that have none.
    """

    norms: Callable[[], list[tuple[float | None, ...]]]
    without: frozenset[str]


class Measurement:
    """Looks at one optimizer and the model whose parameters it moves."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer, self._layout = optimizer, ModelLayout(model)
        self.parameters = dict(model.named_parameters())
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._members: list[Tensor] = []  # of the groups, as they were last
        self._sizes: list[int] = []
        self._names_by_group: list[tuple[str, ...]] = []
        self._columns: list[str] = []  # numbers that the log has of each group
        self._known: dict[int, tuple[list[Any], dict[str, float]]] = {}  # values, as numbers

    def require_same(self) -> None:
        """Raise TracingError if the model's tensors are not those that the log has rows for."""
        self._layout.require()

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the parameter groups as they are.

        Raises:
            TracingError: They hold a parameter that is not logged.
        """
        self._grouped()
        self._columns = self._columns or self.hyperparameters()
        groups = self._optimizer.param_groups
        return tuple(
            [
                ParameterGroup(names, self._remembered(k, group))
                for k, (names, group) in enumerate(zip(self._names_by_group, groups, strict=True))
            ]
        )

    def hyperparameters(self) -> list[str]:
        """Return the names of the numbers that are logged of each group."""
        names: dict[str, None] = {}
        for group in self._optimizer.param_groups:
            names.update(dict.fromkeys(self._numbers(group)))
        return [*names, GRADIENT_NORM]

    def frozen(self) -> frozenset[str]:
        """Return the parameters that do not require a gradient."""
        return frozenset([name for name, p in self.parameters.items() if not p.requires_grad])

    def gradients(self) -> Gradients:
        """Return what is to be known of the gradients; inside ``torch.no_grad()``."""
        parameters = self._grouped()
        found = [p.grad for p in parameters]
        without = frozenset(
            [self._names[id(p)] for p, g in zip(parameters, found, strict=True) if g is None]
        )
        norms = _norms([_dense(g) for g in found if g is not None])
        scale = getattr(self._optimizer, "grad_scale", None)
        scale = scale.clone() if isinstance(scale, Tensor) else scale
        has, sizes = [g is not None for g in found], self._sizes

        def by_group() -> list[tuple[float | None, ...]]:
            factor = 1.0 if scale is None else float(scale)
            values = iter([float(norm) / factor for norm in norms])
            each = iter([next(values) if one else None for one in has])
            return [tuple(islice(each, size)) for size in sizes]

        return Gradients(by_group, without)

    def skipped(self) -> bool:
        """Return whether AMP left the step out."""
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

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

    def _remembered(self, k: int, group: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of group k, the very last ones if nothing was assigned since."""
        values = [group.get(key) for key in ("lr", *self._optimizer.defaults)]
        known = self._known.get(k)
        if known is not None and all(map(is_, values, known[0])):
            return known[1]
        numbers = self._numbers(group)
        for name in numbers:
            if name not in self._columns:
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


def check_parameters(optimizer: Optimizer, names: dict[int, str]) -> None:
    """Raise TracingError for a parameter that the model does not have."""
    for k, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise TracingError(
                    f"group {k} of the optimizer holds a parameter of shape "
                    f"{tuple(parameter.shape)} that is not in the model; pass the model whose "
                    "parameters it moves."
                )


def step_measured(optimizer: Optimizer, measure: Callable[[], None]) -> Any:
    """Take an optimizer's step; ``measure`` is called when its own hooks, which may clip, have run.

    Returns:
        What the step returned.
    """
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    if hooks is None or not (hooks or _global_optimizer_pre_hooks):
        measure()
        return optimizer.step()
    last = optimizer.register_step_pre_hook(lambda *_: measure())
    try:
        return optimizer.step()
    finally:
        last.remove()


def fill_in(step: Step, by_group: list[tuple[float | None, ...]]) -> None:
    """Give a step that nobody has seen yet the norms of its gradients, by group."""
    for group, each in zip(step.groups, by_group, strict=True):
        found = [norm for norm in each if norm is not None]
        norms = tuple(math.nan if norm is None else norm for norm in each)
        object.__setattr__(group, "norms", norms)
        object.__setattr__(group, GRADIENT_NORM, math.hypot(*found))
    whole = math.hypot(*(group.gradient_norm for group in step.groups))
    object.__setattr__(step, GRADIENT_NORM, whole)


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


def _dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient, in float32 at least."""
    kinds = {(g.device, g.dtype) for g in gradients}
    if len(kinds) <= 1 and not any(dtype.itemsize < 4 for _, dtype in kinds):
        return list(torch._foreach_norm(gradients)) if gradients else []
    return [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)) for g in gradients]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
