r"""Adam, AdamW and AMSGrad.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) u²,
    w − w' = lr / (1 − β₁ᵏ) · b' / (√(v' / (1 − β₂ᵏ)) + ε)   at a parameter's k-th step;

AMSGrad takes the largest ``v'`` so far. Decay is part of ``u``, or decoupled: ``lr · decay · w``
is then subtracted beside it. Source: torch.optim.Adam and AdamW of torch 2.13, also as to dtypes:
where a hyperparameter is a tensor, or ``capturable`` makes ``k`` one, torch computes numbers such
as ``lr / (1 − β₁ᵏ)`` in its dtype, which is float32 in a float64 run, too; ``fused`` never does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tracer.rules.filter import Filter
from tracer.rules.rule import Numbers, State, is_on, no_steps, root, used


class Adam:
    """``torch.optim.Adam`` and ``AdamW``, which differ in a hyperparameter."""

    buffer, momentum, adapts = "exp_avg", "betas.0", True

    def remembers(self, used: Callable[[str], bool]) -> bool:
        return True

    def coupled_decay(self, numbers: Numbers) -> float:
        return 0.0 if is_on(numbers, _DECOUPLED) else float(numbers.get("weight_decay", 0.0))

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": no_steps(), "exp_avg_sq": torch.zeros_like(w)}
        ams = is_on(numbers, "amsgrad")
        return {**state, "max_exp_avg_sq": torch.zeros_like(w)} if ams else state

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        b2 = used(numbers, "betas.1")
        v = state["exp_avg_sq"].mul(b2).addcmul_(u, u, value=float(1 - b2))
        after = {**state, "step": state["step"] + 1, "exp_avg_sq": v}
        if is_on(numbers, "amsgrad"):
            after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        return after

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        size, denominator = _move(state, numbers)
        gain = 1 - float(numbers["betas.0"])
        return Filter(
            through=size,
            keep=float(numbers["betas.0"]),
            gain=gain,
            post=denominator.double().reciprocal_(),
            decoupled=_shrinkage(numbers) if is_on(numbers, _DECOUPLED) else 0.0,
        )


_DECOUPLED = "decoupled_weight_decay"


def _move(state: State, numbers: Numbers) -> tuple[float, Tensor]:
    """Return by what ``b'`` is multiplied and by what it is divided."""
    v = root(state["max_exp_avg_sq" if is_on(numbers, "amsgrad") else "exp_avg_sq"])
    lr, b1, b2 = (used(numbers, name) for name in ("lr", "betas.0", "betas.1"))
    eps = float(numbers["eps"])
    if is_on(numbers, "fused") or not is_on(numbers, "capturable"):
        count = float(state["step"])
        return float(lr / (1 - b1**count)), (v / (1 - b2**count) ** 0.5).add_(eps)
    k = state["step"].to(v.device)
    first, second = 1 - b1**k, (1 - b2**k).sqrt()
    if numbers.get("foreach") != 0:
        return float((first / lr).reciprocal()), (v / second).add_(eps)
    size = lr / first
    return 1.0, (v / (second * size)).add_(eps / size)


def _shrinkage(numbers: Numbers) -> float:
    """Return what share of a parameter its decoupled decay takes."""
    pull = used(numbers, "lr") * used(numbers, "weight_decay")
    return 1 - float(1 - pull) if isinstance(pull, Tensor) else float(pull)
