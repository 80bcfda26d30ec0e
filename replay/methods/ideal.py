r"""TracInIdeal with a split: each step's measured drop, divided along the step.

    φ(w_t) − φ(w_{t+1}) = ⟨q̄, Δ_t⟩,    q̄ = ∫_0^1 ∇φ(w_t − uΔ_t) du,

which is the Aumann-Shapley value of the step's parts: complete, linear, additive when examples
are merged or split. ``q̄`` is found for every step and test example on its own: without a
tolerance by the secant rule between the ends of the step, else by the rules of
``replay.path.quadrature``.

Source of the drops: Pruthi et al. (arXiv 2002.08484), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from replay.methods.method import Method
from replay.methods.names import IDEAL
from replay.path.bundle import Bundles
from replay.path.points import Points
from replay.path.quadrature.ladder import Mean, climb
from replay.path.quadrature.secant import secant
from replay.path.step_path import Split, StepPath


def divide(lines: Sequence[StepPath], bundles: Bundles, tolerance: float | None) -> list[Split]:
    """Divide each step by its mean gradient.

    Args:
        lines: The steps.
        bundles: What takes some of them together.
        tolerance: How far a split may be off, relative to its norm; None takes the whole
            step's secant.
    """
    sizes = dict.fromkeys(len(line.trained.ids) for line in lines)
    if len(sizes) > 1:
        alike = {b: [line for line in lines if len(line.trained.ids) == b] for b in sizes}
        found = {b: iter(divide(some, bundles, tolerance)) for b, some in alike.items()}
        return [next(found[len(line.trained.ids)]) for line in lines]
    points, allowed = Points(lines, bundles), [_rounding(line) for line in lines]
    if tolerance is None:
        theta = secant(points.ends)
        error = np.full(len(theta), np.nan)
        mean = Mean(points.ends.u, np.hstack((theta, 1 - theta)), error)
    else:
        mean = climb(points.ends, points.look, tolerance, torch.cat(allowed).numpy())
    nodes = points.average(mean.u, mean.weights)
    rows = zip(np.split(mean.error, len(lines)), np.split(mean.gradients, len(lines)), strict=True)
    return [
        Split(
            node,
            split_error=torch.from_numpy(error),
            theta_inside=(line.values[0] - line.values[1] - node.slope).abs() <= most,
            gradients=torch.from_numpy(gradients),
        )
        for line, node, most, (error, gradients) in zip(lines, nodes, allowed, rows, strict=True)
    ]


def _rounding(line: StepPath) -> Tensor:
    """Return how far a slope may be from a measured drop by rounding alone, ``(m,)``."""
    exact = line.examples.is_double
    norms = torch.maximum(line.end(0).norms, line.end(1).norms)
    return (1e-11 if exact else 1e-5) * norms * line.step_norm() + 4e-16 * line.values[0].abs()


METHOD = Method(IDEAL, divide=divide, refines=True)
