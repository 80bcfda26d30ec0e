r"""TracInIdeal with a split: each step's measured drop, divided along the step.

    φ(w_t) − φ(w_{t+1}) = ⟨q̄, Δ_t⟩,    q̄ = ∫_0^1 ∇φ(w_t − uΔ_t) du,

which is the Aumann-Shapley value of the step's parts: complete, linear, additive when examples
are merged or split. ``q̄`` is found for every step and test example on its own:

*Secant rule* on ``[a, b]``: ``q̄ = θ q_a + (1−θ) q_b`` with ``θ ∈ [0, 1]`` such that the drop is
the measured one. *Refinement*: 1, 2, 4, 8 pieces until the split changes by less than the
tolerance; as many Gauss-Legendre nodes are taken instead where they leave no residual.

Source of the drops: Pruthi et al. (arXiv 2002.08484), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replay.methods.method import Method
from replay.methods.names import IDEAL
from replay.path.step_path import Node, Split, StepPath, average

_PIECES = (2, 4, 8)


def divide(line: StepPath, tolerance: float | None) -> Split:
    """Divide the step by its mean gradient.

    Args:
        line: The step.
        tolerance: Stop refining when the split changes by less, relative to its norm; None
            takes the whole step's secant.
    """
    grid = _Grid(line)
    node, inside = grid.secant(1, torch.arange(len(line.examples), device="cpu"))
    error = torch.full_like(node.norms, torch.nan)
    used = torch.full_like(inside, 2, dtype=torch.int64)
    result = Split(node, error, inside, used)
    if tolerance is None:
        return result
    active = torch.arange(len(inside), device="cpu")
    for pieces in _PIECES:
        grid.halve(pieces, active)
        finer, fits = grid.secant(pieces, active)
        change = _put(result, active, finer, fits, pieces // 2)
        active = active[~((change <= tolerance) & fits)]
        if len(active) == 0:
            break
        smooth, kept = _gauss(line, pieces, active)
        result.gradients[active] += pieces
        _put(result, active[kept], smooth.columns(kept), kept[kept], 0)
        active = active[~kept]
        if len(active) == 0:
            break
    return result


def _put(result: Split, columns: Tensor, node: Node, inside: Tensor, gradients: int) -> Tensor:
    """Replace some columns of a split; return by how much each changed, relative to it."""
    old = result.node.columns(columns).shares
    size = node.shares.square().sum(0).sqrt()
    change = (node.shares - old).square().sum(0).sqrt() / size.clamp_min(1e-300)
    result.node.replace(columns, node)
    result.split_error[columns] = change
    result.theta_inside[columns] = inside
    result.gradients[columns] += gradients
    return change


def _rounding(line: StepPath, norms: Tensor, values: Tensor) -> Tensor:
    """Return how far a slope may be from a measured drop by rounding alone, ``(m,)``."""
    exact = line.examples.is_double
    return (1e-11 if exact else 1e-5) * norms * line.step_norm() + 4e-16 * values.abs()


def _gauss(line: StepPath, count: int, active: Tensor) -> tuple[Node, Tensor]:
    """Return the Gauss-Legendre average of some columns, and where it leaves no residual."""
    points, weights = np.polynomial.legendre.leggauss(count)
    columns = active.tolist()
    nodes = [line.node((1 + float(x)) / 2, columns) for x in points]
    node = average(torch.from_numpy(weights / 2)[:, None].expand(-1, len(columns)), nodes)
    start, stop = (value[active] for value in line.values)
    residual = (start - stop - node.slope).abs()
    return node, residual <= _rounding(line, node.norms, start)


@dataclass
class _Point:
    """Node and value at one ``u``, for every column; NaN where not evaluated."""

    node: Node
    value: Tensor


class _Grid:
    """Nodes and values at equal spacing along a step, added to as pieces are halved."""

    def __init__(self, line: StepPath) -> None:
        self._line = line
        self._points: dict[float, _Point] = {u: _Point(line.end(u), line.values[u]) for u in (0, 1)}

    def halve(self, pieces: int, active: Tensor) -> None:
        """Evaluate the new points of a division in ``pieces`` for the active columns."""
        blank = self._points[0]
        columns = active.tolist()
        for k in range(1, pieces, 2):
            u = k / pieces
            shares, parts, norms = (
                torch.full_like(x, torch.nan)
                for x in (blank.node.shares, blank.node.parts, blank.node.norms)
            )
            node = Node(shares, parts, norms, {})
            value = torch.full_like(blank.value, torch.nan)
            found = self._line.node(u, columns)
            node.replace(active, found)
            value[active] = self._line.value(u, columns)
            self._points[u] = _Point(node, value)

    def secant(self, pieces: int, active: Tensor) -> tuple[Node, Tensor]:
        """Return the secant average of some columns, and where every θ is inside its bounds."""
        points = [self._points[k / pieces] for k in range(pieces + 1)]
        nodes = [point.node.columns(active) for point in points]
        values = [point.value[active] for point in points]
        weights = torch.zeros(pieces + 1, len(active), dtype=torch.float64, device="cpu")
        inside = torch.ones(len(active), dtype=torch.bool, device="cpu")
        for k in range(pieces):
            drop = (values[k] - values[k + 1]) * pieces
            left, right = nodes[k].slope, nodes[k + 1].slope
            gap = left - right
            flat = gap.abs() <= 1e-14 * (left.abs() + right.abs())
            theta = torch.where(flat, 0.5, (drop - right) / torch.where(flat, 1.0, gap))
            theta = theta.clamp(0, 1)
            residual = (drop - theta * left - (1 - theta) * right).abs()
            norms = torch.maximum(nodes[k].norms, nodes[k + 1].norms)
            inside &= residual <= _rounding(self._line, norms, values[k] * pieces)
            weights[k] += theta / pieces
            weights[k + 1] += (1 - theta) / pieces
        return average(weights, nodes), inside


METHOD = Method(IDEAL, divide=divide, refines=True)
