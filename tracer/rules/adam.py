r"""Adam, AdamW and AMSGrad.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) u²,
    w − w' = lr / (1 − β₁ᵏ) · b' / (√(v' / (1 − β₂ᵏ)) + ε)   at a parameter's k-th step;

AMSGrad takes the largest ``v'`` so far. Decay is part of ``u``, or decoupled: ``lr · decay · w``
is then subtracted beside it. Source: torch.optim.Adam and AdamW of torch 2.13, also as to dtypes:
where a hyperparameter is a tensor, or ``capturable`` makes ``k`` one, torch computes numbers such
as ``lr / (1 − β₁ᵏ)`` in its dtype, which is float32 in a float64 run, too; ``fused`` never does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import coupled, decoupled, is_on, no_steps, root, used
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Adam(UpdateRule):
    """``torch.optim.Adam`` and ``AdamW``, which differ in a hyperparameter."""

    buffer, momentum, smooth = "exp_avg", "betas.0", True
    frozen = "the second moments under the momentum"

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": no_steps(), "exp_avg_sq": torch.zeros_like(w)}
        ams = is_on(numbers, "amsgrad")
        return {**state, "max_exp_avg_sq": torch.zeros_like(w)} if ams else state

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, state = now.numbers, now.state
        v = second_moment(now)
        after = {**state, "step": state["step"] + 1, "exp_avg_sq": v}
        if is_on(numbers, "amsgrad"):
            after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        size, denominator = _move(after, numbers)
        move = Filter(
            through=size,
            keep=float(numbers["betas.0"]),
            gain=1 - float(numbers["betas.0"]),
            post=denominator.double().reciprocal_(),
            decoupled=decoupled(numbers),
        )
        return move, after


def second_moment(now: Now) -> Tensor:
    """Return the mean square after a step, in torch's order of operations."""
    b2 = used(now.numbers, "betas.1")
    return now.state["exp_avg_sq"].mul(b2).addcmul_(now.u, now.u, value=float(1 - b2))


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
