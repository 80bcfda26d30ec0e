r"""The derivative of clipping: ``κ = limit / (‖G‖ + 1e-6)`` falls as the gradient grows.

    d(κ G) = κ (dG − G ⟨G, dG⟩ / (‖G‖ (‖G‖ + 1e-6)))

A log has ``κ`` and not the limit, which the derivative does not need; but it must be a limit of the
Euclidean norm that made ``κ``, and not a number of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replay.steps.replayed_step import ReplayedStep
from tracer.errors import UnsupportedRuleError

_TINY = 1e-6  # what torch adds to the norm


def through_clipping(
    replayed: ReplayedStep, gradient: dict[str, Tensor], cotangent: dict[str, Tensor]
) -> None:
    """Add to ``κ ā`` what moves the factor, in place.

    Args:
        replayed: The step.
        gradient: ``G`` of each parameter, flat, unclipped.
        cotangent: ``κ ā`` of each, ``(m, numel)``.

    Raises:
        UnsupportedRuleError: Whether the factor depends on the gradient is unknown.
    """
    for names in _clipped(replayed, gradient):
        norm = math.hypot(*(float(torch.linalg.vector_norm(gradient[n])) for n in names))
        products = torch.stack([cotangent[n] @ gradient[n] for n in names]).sum(0)
        share = products / (norm * (norm + _TINY))
        for name in names:
            cotangent[name].addr_(share, gradient[name], alpha=-1)


def _clipped(replayed: ReplayedStep, gradient: dict[str, Tensor]) -> list[list[str]]:
    """Return the parameters whose gradients were clipped by one factor below 1, each time."""
    step = replayed.transition.step
    factors = {name: abs(replayed.factors[name]) for name in gradient}
    if all(factor == 1 for factor in factors.values()):
        return []
    groups = [[n for n in group.names if n in gradient] for group in step.groups]
    groups = [names for names in groups if names]
    found = [names for names in groups if factors[names[0]] != 1]
    values = [factors[names[0]] for names in groups]
    if max(values) - min(values) <= 1e-5 * max(values):
        found = [list(gradient)]
    for names in found:
        _require_limit(replayed, names, factors[names[0]], gradient)
    return found


def _require_limit(
    replayed: ReplayedStep, names: list[str], kappa: float, gradient: dict[str, Tensor]
) -> None:
    step = replayed.transition.step
    parts = [gradient[name] for name in names]
    norms = {
        p: float(torch.stack([torch.linalg.vector_norm(g, p) for g in parts]).norm(p))
        for p in (2.0, math.inf, 1.0)
    }
    limits = {p for p, norm in norms.items() if _is_round(kappa * (norm + _TINY))}
    recorded = math.isclose(kappa, step.clip_factor, rel_tol=1e-9)
    if 2.0 in limits or (recorded and not limits):
        return
    raise UnsupportedRuleError(
        f"{replayed.transition.name}: the gradient was multiplied by {kappa:.6g}, and nothing says "
        "that this is clipping to a Euclidean norm, so how it depends on the gradient is unknown; "
        "unrolled differentiates it.\n"
        "  1. Clip with optimizer.clip_grad_norm_(max_norm), which records it;\n"
        "  2. or, if it is a factor of the loss, return it from task.loss;\n"
        "  3. or ask for tracin or ideal, which take the factor as it was."
    )


def _is_round(limit: float) -> bool:
    return math.isclose(float(f"{limit:.4g}"), limit, rel_tol=3e-6)
