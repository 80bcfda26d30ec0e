r"""TracIn: the exact first order of each step.

    tracin(z, z') = Σ_s Σ_{i ∈ B_s: id = z} κ_s c_i ⟨λ_s, g_i⟩,    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,

with ``q_t = ∇φ(w_t, z')``, the single node ``u = 0`` of each step. For plain SGD
``λ_s = η_s q_s``: the formula of Pruthi et al. (arXiv 2002.08484), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from replay.methods.method import Method
from replay.methods.names import TRACIN
from replay.path.bundle import Bundles
from replay.path.step_path import Node, Split, StepPath


def divide(lines: Sequence[StepPath], _: Bundles, __: float | None) -> list[Split]:
    """Divide each step by the gradient at its beginning."""
    return [_by(line.end(0)) for line in lines]


def _by(node: Node) -> Split:
    m = len(node.norms)
    return Split(
        node,
        split_error=torch.full((m,), torch.nan, dtype=torch.float64, device="cpu"),
        theta_inside=torch.zeros(m, dtype=torch.bool, device="cpu"),
        gradients=torch.ones(m, dtype=torch.int64, device="cpu"),
    )


METHOD = Method(TRACIN, divide=divide)
