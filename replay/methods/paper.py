"""The paper's formula, whatever the optimizer: what one gets by ignoring it.

    score(z, z') = Σ_s Σ_{i ∈ B_s: id = z} η_s c_i ⟨∇φ(w_s, z'), g_i⟩

Under plain unclipped SGD it is ``tracin``. Source: Pruthi et al. (arXiv 2002.08484), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms import products
from replay.gradients.forms.per_example import PerExample
from replay.methods.method import Method
from replay.methods.names import PAPER
from replay.states.rates import learning_rates
from replay.steps.replayed_step import ReplayedStep


def credit(
    replayed: ReplayedStep, trained: TrainedStep, test: PerExample, names: frozenset[str] | None
) -> Tensor:
    """Return ``η_t c_i ⟨q_t, g_i⟩`` of every occurrence and test example, float64 ``(b, m)``."""
    chosen = {name for name in replayed.filters if names is None or name in names}
    rates = learning_rates(replayed.transition.step, chosen, METHOD.name)
    return torch.cat([products.inner(batch, test, rates) for batch in trained.batches]).cpu()


METHOD = Method(PAPER, credit=credit)
