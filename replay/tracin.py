r"""TracIn: the exact first order of each step.

    tracin(z, z') = Σ_t Σ_{i ∈ B_t: id = z} η_t c_i ⟨q_t, g_i⟩,    q_t = ∇φ(w_t, z'),

for plain SGD the formula of Pruthi et al. (arXiv 2002.08484), section 3.2: the single node
``u = 0`` of the step.
"""

from __future__ import annotations

import torch

from replay.line import Line, Split


def split(line: Line) -> Split:
    """Divide the step by the gradient at its beginning."""
    node = line.end(0)
    m = len(node.norms)
    return Split(
        node,
        split_error=torch.full((m,), torch.nan, dtype=torch.float64),
        theta_inside=torch.zeros(m, dtype=torch.bool),
        gradients=torch.ones(m, dtype=torch.int64),
    )
