r"""TracIn: the exact first order of each step.

    tracin(z, z') = Σ_s Σ_{i ∈ B_s: id = z} κ_s c_i ⟨λ_s, g_i⟩,    λ_s = Σ_{t ≥ s} K_{t,s}ᵀ q_t,

with ``q_t = ∇φ(w_t, z')``, the single node ``u = 0`` of each step. For plain SGD
``λ_s = η_s q_s``: the formula of Pruthi et al. (arXiv 2002.08484), section 3.2.
"""

from __future__ import annotations

import torch

from replay.methods.method import Method
from replay.methods.names import TRACIN
from replay.path.step_path import Split, StepPath


def divide(line: StepPath, _: float | None) -> Split:
    """Divide the step by the gradient at its beginning."""
    node = line.end(0)
    m = len(node.norms)
    return Split(
        node,
        split_error=torch.full((m,), torch.nan, dtype=torch.float64, device="cpu"),
        theta_inside=torch.zeros(m, dtype=torch.bool, device="cpu"),
        gradients=torch.ones(m, dtype=torch.int64, device="cpu"),
    )


METHOD = Method(TRACIN, divide=divide)
