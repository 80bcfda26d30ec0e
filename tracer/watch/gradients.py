"""The size of the gradient that a step applies, measured without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from tracer.records import ParameterGroup


@dataclass(frozen=True)
class Gradients:
    """Gradients as a step applies them.

    Attributes:
        norms: Euclidean norm of each parameter's, group after group, as scalars; None where it
            has none.
        scale: What a GradScaler multiplied them with, if it left that to the optimizer.
        without: Names of the optimizer's parameters that have none.
    """

    norms: tuple[Tensor | None, ...]
    scale: Tensor | float | None
    without: frozenset[str]

    def of(self, groups: Sequence[ParameterGroup]) -> tuple[ParameterGroup, ...]:
        """Return parameter groups with the norms of their gradients.

        Waits for the device, so it is not for the training thread.
        """
        scale = 1.0 if self.scale is None else float(self.scale)
        each = iter([None if norm is None else float(norm) / scale for norm in self.norms])
        return tuple([_with_norms(g, list(islice(each, len(g.names)))) for g in groups])


def measured(
    names: Sequence[str], gradients: Sequence[Tensor | None], scale: Tensor | float | None
) -> Gradients:
    """Return what a log says of gradients, without waiting; inside ``torch.no_grad()``.

    Args:
        names: Of the parameters, group after group.
        gradients: Theirs; None where there is none.
        scale: What they are multiplied with; a tensor may change afterwards.
    """
    without = frozenset([n for n, g in zip(names, gradients, strict=True) if g is None])
    found = iter(norms_of([g for g in gradients if g is not None]))
    norms = tuple([None if g is None else next(found) for g in gradients])
    return Gradients(norms, scale.clone() if isinstance(scale, Tensor) else scale, without)


def _with_norms(group: ParameterGroup, norms: Sequence[float | None]) -> ParameterGroup:
    whole = math.hypot(*[norm for norm in norms if norm is not None])
    each = tuple([math.nan if norm is None else norm for norm in norms])
    return replace(group, gradient_norm=whole, norms=each)


def values_of(gradient: Tensor) -> Tensor:
    """Return all that a gradient has, each element of a sparse one once."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def norms_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient, in float32 at least."""
    gradients = [values_of(g) for g in gradients]
    kinds = {(g.device, g.dtype) for g in gradients}
    if len(kinds) <= 1 and not any(dtype.itemsize < 4 for _, dtype in kinds):
        return list(torch._foreach_norm(gradients)) if gradients else []
    return [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)) for g in gradients]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
