r"""TracInIdeal with a split: each step's measured drop, divided along the step.

    φ(w_t) − φ(w_{t+1}) = ⟨q̄, Δ_t⟩,    q̄ = ∫_0^1 ∇φ(w_t − uΔ_t) du,

which is the Aumann-Shapley value of the step's parts: complete, linear, additive when examples
are merged or split. ``q̄`` is found for every step and test example on its own: without a
tolerance by the secant rule between the ends of the step, else by the rules of
``replay.path.quadrature``.

Source of the drops: Pruthi et al. (arXiv 2002.08484), section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from replay.methods.method import Method
from replay.methods.names import IDEAL
from replay.path.points import Points
from replay.path.quadrature.ladder import Mean, climb
from replay.path.quadrature.secant import secant
from replay.path.step_path import Split, StepPath


def divide(line: StepPath, tolerance: float | None) -> Split:
    """Divide the step by its mean gradient.

    Args:
        line: The step.
        tolerance: How far the split may be off, relative to its norm; None takes the whole
            step's secant.
    """
    points, allowed = Points(line), _rounding(line)
    if tolerance is None:
        theta = secant(points.ends)
        error = np.full(len(theta), np.nan)
        found = Mean(points.ends.u, np.hstack((theta, 1 - theta)), error)
    else:
        found = climb(points.ends, points.look, tolerance, allowed.numpy())
    node = points.average(found.u, found.weights)
    start, stop = line.values
    return Split(
        node,
        split_error=torch.from_numpy(found.error),
        theta_inside=(start - stop - node.slope).abs() <= allowed,
        gradients=torch.from_numpy(found.gradients),
    )


def _rounding(line: StepPath) -> Tensor:
    """Return how far a slope may be from a measured drop by rounding alone, ``(m,)``."""
    exact = line.examples.is_double
    norms = torch.maximum(line.end(0).norms, line.end(1).norms)
    return (1e-11 if exact else 1e-5) * norms * line.step_norm() + 4e-16 * line.values[0].abs()


METHOD = Method(IDEAL, divide=divide, refines=True)
