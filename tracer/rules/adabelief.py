r"""AdaBelief: Adam over how far gradients are from what the momentum expects.

    b' = β₁ b + (1 − β₁) u,      s' = β₂ s + (1 − β₂) (u − b')² + ε,
    w − w' = lr / (1 − β₁ᵏ) · b' / (√s' / √(1 − β₂ᵏ) + ε)   at the k-th step of the group.

Source: Zhuang et al. (2020), as pytorch_optimizer 4.1 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tracer.rules.arithmetic import no_steps
from tracer.rules.filter import Filter
from tracer.rules.group_steps import GroupSteps, steps_of
from tracer.rules.rule import Now, Numbers, State
from tracer.rules.weight_decouple import coupled, decoupled


class AdaBelief(GroupSteps):
    """``pytorch_optimizer.AdaBelief``."""

    buffer, momentum = "exp_avg", "betas.0"
    frozen = "the spread of gradients under the momentum"
    refuses = ("rectify", "adanorm", "adam_debias", "ams_bound")

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "exp_avg_var": torch.zeros_like(w)}

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        state = {"step": steps_of(group), "exp_avg_var": stored["exp_avg_var"]}
        return state, stored["exp_avg"]

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, count = now.numbers, now.state["step"] + 1
        b1, b2, eps = (float(numbers[name]) for name in ("betas.0", "betas.1", "eps"))
        k, apart = float(count), now.u - now.buffer.lerp(now.u, 1 - b1)
        spread = now.state["exp_avg_var"].mul(b2).addcmul_(apart, apart, value=1 - b2).add_(eps)
        move = Filter(
            through=float(numbers["lr"]) / (1 - b1**k),
            keep=b1,
            gain=1 - b1,
            post=spread.sqrt().div_((1 - b2**k) ** 0.5).add_(eps).double().reciprocal_(),
            decoupled=decoupled(numbers),
        )
        return move, {"step": count, "exp_avg_var": spread}
