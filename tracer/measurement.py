"""What a step is about to do: hyperparameters, and the size of the gradient that it applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracer.records import GRADIENT_NORM, ParameterGroup, Step


@dataclass(frozen=True)
class Gradients:
    """Gradients as a step applies them.

    Attributes:
        norms: Gives the Euclidean norm of each group's; waits for the device, so not in the
            training thread.
        without: Parameters of the optimizer that have none.
    """

    norms: Callable[[], list[float]]
    without: frozenset[str]


class Measurement:
    """Looks at one optimizer and the model whose parameters it moves."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self.parameters = dict(model.named_parameters())
        self._names = {id(p): name for name, p in self.parameters.items()}

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the parameter groups as they are."""
        names = self._names
        return tuple(
            ParameterGroup(tuple([names[id(p)] for p in group["params"]]), self._numbers(group))
            for group in self._optimizer.param_groups
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

    @torch.no_grad()
    def gradients(self) -> Gradients:
        """Return what is to be known of the gradients."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        found = [p.grad for p in parameters]
        without = frozenset(
            [self._names[id(p)] for p, g in zip(parameters, found, strict=True) if g is None]
        )
        dense = [g.coalesce().values() if g.is_sparse else g for g in found if g is not None]
        norms = _norms(dense)
        scale = getattr(self._optimizer, "grad_scale", None)
        scale = scale.clone() if isinstance(scale, Tensor) else scale
        sizes = [
            sum([p.grad is not None for p in group["params"]])
            for group in self._optimizer.param_groups
        ]

        def by_group() -> list[float]:
            values = iter([float(norm) for norm in norms])
            factor = 1.0 if scale is None else float(scale)
            return [math.hypot(*islice(values, size)) / factor for size in sizes]

        return Gradients(by_group, without)

    def skipped(self) -> bool:
        """Return whether AMP left the step out."""
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def _numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """Return a group's numeric hyperparameters; tuples are spread, None is NaN."""
        found: dict[str, float] = {}
        for key in ("lr", *self._optimizer.defaults):
            value = group.get(key)
            if isinstance(value, (bool, int, float)):
                found[key] = float(value)
            elif isinstance(value, (tuple, list)):
                found.update({f"{key}.{k}": float(v) for k, v in enumerate(value)})
            elif isinstance(value, Tensor) and value.numel() == 1:
                found[key] = float(value)
            elif value is None:
                found[key] = math.nan
        return found


def fill_in(step: Step, norms: list[float]) -> None:
    """Give a step that nobody has seen yet the norms of its groups' gradients."""
    for group, norm in zip(step.groups, norms, strict=True):
        object.__setattr__(group, GRADIENT_NORM, norm)
    object.__setattr__(step, GRADIENT_NORM, math.hypot(*norms))


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient, in float32 at least."""
    kinds = {(g.device, g.dtype) for g in gradients}
    if len(kinds) <= 1 and not any(dtype.itemsize < 4 for _, dtype in kinds):
        return list(torch._foreach_norm(gradients)) if gradients else []
    return [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)) for g in gradients]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
