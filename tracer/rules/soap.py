r"""SOAP: Adam in the eigenbases of sums of products of gradients.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) (Qᵀ u)²,
    w − w' = s Q (Qᵀ b' / (√v' + ε)),      s = lr √(1 − β₂ᵏ) / (1 − β₁ᵏ)

after k steps of the group. ``Qᵀ u`` multiplies each dimension of ``u`` by its eigenvectors: for a
matrix ``Q_Lᵀ u Q_R``. The first step of a group moves nothing. Decay shrinks what the step has
made of the parameter.

Where gradients left eigenvalues at 0, eigenvectors are whatever the last bit makes them, so ``Q``
and ``v`` are the run's own before each step, never recomputed. The momentum is kept in the
parameter's own basis. Source: Vyas et al. (2024), as pytorch_optimizer 4.1 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tracer.errors import UnsupportedRuleError
from tracer.rules.arithmetic import no_steps
from tracer.rules.filter import Filter
from tracer.rules.group_steps import GroupSteps
from tracer.rules.rule import Now, Numbers, State
from tracer.rules.sides import Sides

_BASIS = "Q."  # and the number of a dimension


class SOAP(GroupSteps):
    """``pytorch_optimizer.SOAP``."""

    buffer, momentum, recorded = "exp_avg", "betas.0", True
    frozen = "the eigenbases, and the second moments in them under the momentum"
    refuses = ("merge_dims",)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps()}

    def held(
        self, stored: Mapping[str, Any], group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        state: State = {"step": no_steps().add_(group.get("step", 0))}
        if "exp_avg_sq" in stored:
            state["exp_avg_sq"] = stored["exp_avg_sq"]
            bases = enumerate(stored["Q"])
            state |= {f"{_BASIS}{k}": q for k, q in bases if isinstance(q, Tensor)}
        return state, stored.get("exp_avg")

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, count = now.numbers, now.state["step"] + 1
        if count == 1:
            return Filter(), {"step": count}
        b1, b2, eps, lr = (float(numbers[k]) for k in ("betas.0", "betas.1", "eps", "lr"))
        k, basis = float(count) - 1, _basis(now, int(count) - 1)
        u = now.u if basis is None else basis.transposed.times(now.u)
        old = now.state.get("exp_avg_sq", torch.zeros_like(u))
        post = old.lerp(u.square(), 1 - b2).sqrt_().add_(eps).double().reciprocal_()
        size = lr * (1 - b2**k) ** 0.5 / (1 - b1**k) if numbers["correct_bias"] else lr
        shrunk = lr * float(numbers["weight_decay"])
        move = Filter(
            through=1.0,
            keep=b1,
            gain=1 - b1,
            post=post,
            decoupled=shrunk,
            inner=None if basis is None else basis.transposed.to(torch.float64),
            outer=None if basis is None else basis.to(torch.float64),
        )
        if numbers["normalize_gradient"]:
            moved, _ = move.forward(now.u.double(), now.buffer.double())
            assert moved is not None
            size /= float(moved.square().mean().sqrt()) + eps
        return replace(move, through=size * (1 - shrunk)), {"step": count}


def _basis(now: Now, k: int) -> Sides | None:
    """Return ``Q`` of a step; None if each dimension keeps its own basis."""
    state = now.state
    if "exp_avg_sq" not in state:  # the parameter's first gradient made it
        if k % int(now.numbers["precondition_frequency"]) == 0:
            raise UnsupportedRuleError(
                f"a parameter {tuple(now.w.shape)} had its first gradient at SOAP's step {k + 1}, "
                "which also renewed the eigenbasis that it had moved in, so no state has it.\n"
                "  1. Begin the window after that step: steps=range(start, stop)."
            )
        state = now.after()
    found = [state.get(f"{_BASIS}{dim}") for dim in range(now.w.dim())]
    if all(q is None for q in found):
        return None
    return Sides(tuple(now.w.shape), tuple(None if q is None else q.to(now.w) for q in found))
