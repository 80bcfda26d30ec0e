r"""The derivative of clipping: ``κ = limit / (‖G‖ + 1e-6)`` falls as the gradient grows.

    d(κ G) = κ (dG − G ⟨n, dG⟩ / (‖G‖ + 1e-6)),      n = ∂‖G‖/∂G

A log has ``κ`` and not the limit, which the derivative does not need; but it must be a limit that
made ``κ``, and of which norm: the one for which the limit is a round number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
        known = {name: gradient[name] for name in names}
        kind = _kind(replayed, known)
        norm = _norm(known, kind)
        share = torch.stack([cotangent[n] @ g for n, g in known.items()]).sum(0) / (norm + _TINY)
        for name, g in known.items():
            normal = g / norm if kind == 2 else g.sign() * (g.abs() == norm)
            cotangent[name].addr_(share, normal, alpha=-1)


def _clipped(replayed: ReplayedStep, gradient: dict[str, Tensor]) -> list[list[str]]:
    """Return the parameters whose gradients were clipped by one factor below 1, each time."""
    step = replayed.transition.step
    factors = {name: abs(replayed.factors[name]) for name in gradient}
    if all(factor == 1 for factor in factors.values()):
        return []
    found: list[list[str]] = []
    for some in step.groups_by_optimizer.values():
        groups = [[n for n in group.names if n in gradient] for group in some]
        groups = [names for names in groups if names]
        together = [name for names in groups for name in names]
        found += [together] if _alike(factors[name] for name in together) else groups
    if _alike(factors.values()):
        return [list(gradient)]
    return [names for names in found if names and factors[names[0]] != 1]


def _alike(factors: Iterable[float]) -> bool:
    values = list(factors)
    return not values or max(values) - min(values) <= 1e-5 * max(values)


def _kind(replayed: ReplayedStep, known: dict[str, Tensor]) -> float:
    """Return by which norm some gradients were clipped: 2, or infinity for the largest element."""
    step, kappa = replayed.transition.step, abs(replayed.factors[next(iter(known))])
    kinds = [p for p in (2.0, math.inf, 1.0) if _is_round(kappa * (_norm(known, p) + _TINY))]
    recorded = math.isclose(kappa, step.clip_factor, rel_tol=1e-9)
    if (kinds and kinds[0] != 1) or (recorded and not kinds):
        return kinds[0] if kinds else 2.0
    raise UnsupportedRuleError(
        f"{replayed.transition.name}: the gradient was multiplied by {kappa:.6g}, and nothing says "
        "that this was clipping: no limit of its norm, or of its largest element, is a round "
        "number. unrolled needs to know how the factor depends on the gradient.\n"
        "  1. Clip with optimizer.clip_grad_norm_(max_norm), which records it;\n"
        "  2. or, if it is a factor of the loss, return it from task.loss;\n"
        "  3. or ask for tracin or ideal, which take the factor as it was."
    )


def _norm(gradient: dict[str, Tensor], kind: float) -> float:
    parts = torch.stack([torch.linalg.vector_norm(g, kind) for g in gradient.values()])
    return float(torch.linalg.vector_norm(parts, kind))


def _is_round(limit: float) -> bool:
    return math.isclose(float(f"{limit:.4g}"), limit, rel_tol=3e-6)
