r"""Adam, AdamW and AMSGrad.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) u²,
    w − w' = lr / (1 − β₁ᵏ) · b' / (√(v' / (1 − β₂ᵏ)) + ε)   at a parameter's k-th step;

AMSGrad takes the largest ``v'`` so far. Decay is part of ``u``, or decoupled: ``lr · decay · w``
is then subtracted beside it. Source: torch.optim.Adam and AdamW of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tracer.rules.filter import Filter
from tracer.rules.rule import Numbers, State


class Adam:
    """``torch.optim.Adam`` and ``AdamW``, which differ in a hyperparameter."""

    buffer, momentum, adapts = "exp_avg", "betas.0", True

    def remembers(self, used: Callable[[str], bool]) -> bool:
        return True

    def coupled_decay(self, numbers: Numbers) -> float:
        return 0.0 if _is_decoupled(numbers) else numbers.get("weight_decay", 0.0)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros_like(w)}
        return {**state, "max_exp_avg_sq": torch.zeros_like(w)} if _ams(numbers) else state

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        b2 = numbers["betas.1"]
        v = state["exp_avg_sq"].mul(b2).addcmul_(u, u, value=1 - b2)
        after = {**state, "step": state["step"] + 1, "exp_avg_sq": v}
        if _ams(numbers):
            after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        return after

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        lr, b1, k = numbers["lr"], numbers["betas.0"], float(state["step"])
        decay = numbers.get("weight_decay", 0.0) if _is_decoupled(numbers) else 0.0
        return Filter(
            through=lr / (1 - b1**k),
            keep=b1,
            gain=1 - b1,
            post=_denominator(state, numbers).double().reciprocal_(),
            decoupled=lr * decay,
        )


def _is_decoupled(numbers: Numbers) -> bool:
    return bool(numbers.get("decoupled_weight_decay"))


def _ams(numbers: Numbers) -> bool:
    return bool(numbers.get("amsgrad"))


def _denominator(state: State, numbers: Numbers) -> Tensor:
    v = state["max_exp_avg_sq" if _ams(numbers) else "exp_avg_sq"]
    k = float(state["step"])
    correction: float = (1 - numbers["betas.1"] ** k) ** 0.5
    return (v.sqrt() / correction).add_(numbers["eps"])
