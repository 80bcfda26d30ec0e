r"""Self-influence: what the visits of a training example did to that example itself.

    self(z)     = Σ_s Σ_{i ∈ B_s: id = z} κ_s c_i ⟨K_{s,s}ᵀ g_i, g_i⟩

is the immediate effect of its own part of each step, train mode; under plain SGD
``Σ (η/b) ‖g_i‖²``. Beside it ``own_drop``: ``ℓ(w_s, z) − ℓ(w_{s+1}, z)`` summed over its visits,
the same pass of the real batch at both ends of the step: what the whole step did to z, another
quantity. And ``loss``, the mean of ``ℓ(w_s, z)`` over its visits: the plain baseline.
Examples with large self-influence are often mislabelled. Source: Pruthi et al. (arXiv
2002.08484), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay.evaluate.binding import Models
from replay.evaluate.train_side import losses_at
from replay.gradients.forms import products
from replay.steps.replayed_step import ReplayedStep
from replay.task import Task
from tracer.errors import TaskError
from tracer.records import ID
from tracer.rules.filter import Filter

SUMS = ("self", "own_drop", "loss")
Visits = Mapping[str, NDArray[Any]]


class Sums:
    """Adds visits up by period and training example; visits of others are left out.

    Args:
        train_ids: N examples.
        periods: How many periods there are.

    Attributes:
        tables: Sums of what each visit has, ``(P, N)``.
        visits: How many there were, ``(P, N)``.
    """

    def __init__(self, train_ids: Sequence[ID], periods: int = 1) -> None:
        self._place = {identity: k for k, identity in enumerate(train_ids)}
        size = periods, len(train_ids)
        self.tables = {name: np.zeros(size) for name in SUMS}
        self.visits = np.zeros(size, dtype=np.int64)

    def add(self, ids: Sequence[ID], found: Visits, period: int = 0) -> None:
        """Add the visits of one step of a period."""
        pairs = [(i, self._place[z]) for i, z in enumerate(ids) if z in self._place]
        occurrences, places = ([pair[k] for pair in pairs] for k in (0, 1))
        for name in SUMS:
            np.add.at(self.tables[name][period], places, found[name][occurrences])
        np.add.at(self.visits[period], places, 1)


def visits(replayed: ReplayedStep, task: Task, models: Models) -> dict[str, NDArray[Any]]:
    """Return what each visit of a step has, whose gradients are replayed; float64 ``(b,)`` each."""
    before, after = _own_losses(replayed, task, models)
    found = {"self": _immediate(replayed), "own_drop": before - after, "loss": before}
    return {name: values.numpy() for name, values in found.items()}


def _immediate(replayed: ReplayedStep) -> Tensor:
    """Return ``±κ c_i ⟨K g_i, g_i⟩`` of every occurrence, float64 ``(b,)``."""
    assert replayed.trained is not None
    micro_batches = replayed.transition.step.micro_batches
    found = []
    for batch, micro in zip(replayed.trained.batches, micro_batches, strict=True):
        total = batch.losses.new_zeros(batch.count, dtype=torch.float64)
        weights: dict[str, products.Weight] = {}
        for name, rule in replayed.filters.items():
            if name not in batch.names or not rule.immediate:
                continue
            diagonal = rule.immediate * replayed.factors[name]
            if rule.is_matrix:
                weights[name] = partial(_turned, rule, diagonal)
                continue
            sides = [d.flatten() for d in (rule.pre, rule.post) if d is not None]
            weights[name] = torch.stack(sides).prod(0) * diagonal if sides else diagonal
        total += products.weighted_squares(batch, weights)
        c = micro.coefficients.to(total)  # gradients are those of c_i l_i
        found.append(torch.where(c == 0, 0.0, total / torch.where(c == 0, 1.0, c)))
    return torch.cat(found).cpu()


def _turned(rule: Filter, factor: float, rows: Tensor) -> Tensor:
    return rule.turned(rows if rule.pre is None else rows * rule.pre.flatten()) * factor


def _own_losses(replayed: ReplayedStep, task: Task, models: Models) -> tuple[Tensor, Tensor]:
    """Return ``ℓ_i(w_t)`` and ``ℓ_i(w_{t+1})``, train mode, buffers and batches of the step."""
    assert replayed.trained is not None
    now = replayed.transition
    before, after = (
        torch.cat(losses_at(task, now.step, now.along(u), models.value, device=models.device))
        for u in (0, 1)
    )
    known = torch.cat([batch.losses for batch in replayed.trained.batches]).double()
    half = any(p.dtype.itemsize < 4 for p in models.train.parameters.values())
    share = 0.1 if half else 1e-2  # noise of another dtype is off by all of it
    if bool(((before - known).abs() > share * (1 + known.abs())).any()):
        raise TaskError(
            f"{now.name}: the losses of the batch in {models.value.dtype or 'the run dtype'} and "
            "without gradients are not those of the run.\n"
            "  1. If the model draws noise, which is another in another dtype, take its own: "
            'values="model" (--values model).\n'
            "  2. Let the forward not depend on torch.is_grad_enabled(); ask self.training."
        )
    return before.cpu(), after.cpu()
