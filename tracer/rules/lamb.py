r"""Lamb: Adam's move, made as large as the parameter.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) u²,      r = b' / (√v' + ε) + decay w,
    w − w' = lr / (1 − β₁ᵏ) · min(‖w‖, 10) / (‖r‖ + ε) · r   at the k-th step of the group.

Decay is part of ``r``, or decoupled: then the parameter shrinks before its norm is taken. Source:
You et al. (2019), as pytorch_optimizer 4.1 has it.
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

_LARGEST = 10.0  # norm of a parameter that counts


class Lamb(GroupSteps):
    """``pytorch_optimizer.Lamb``."""

    buffer, momentum = "exp_avg", "betas.0"
    frozen = "the second moments under the momentum, and the trust ratio"
    refuses = ("rectify", "adanorm", "adam_debias")

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "exp_avg_sq": torch.zeros_like(w)}

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        state = {"step": steps_of(group), "exp_avg_sq": stored["exp_avg_sq"]}
        return state, stored["exp_avg"]

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, count = now.numbers, now.state["step"] + 1
        b1, b2, eps = (float(numbers[name]) for name in ("betas.0", "betas.1", "eps"))
        gain = 1 - b1 if numbers["grad_averaging"] else 1.0
        v = now.state["exp_avg_sq"].mul(b2).addcmul_(now.u, now.u, value=1 - b2)
        post = v.sqrt().add_(eps).reciprocal_()
        inside, outside = coupled(numbers), decoupled(numbers)
        w = now.w * (1 - outside)
        r = now.buffer.mul(b1).add_(now.u, alpha=gain).mul_(post).add_(w, alpha=inside)
        trust = 1.0 if numbers["adam"] else _trust(w, r, eps)
        size = float(numbers["lr"]) / (1 - b1 ** float(count)) * trust
        move = Filter(
            through=size,
            keep=b1,
            gain=gain,
            post=post.double(),
            decoupled=outside + size * inside,
        )
        return move, {"step": count, "exp_avg_sq": v}


def _trust(w: Tensor, r: Tensor, eps: float) -> float:
    size, moved = min(float(torch.linalg.norm(w)), _LARGEST), float(torch.linalg.norm(r))
    return size / (moved + eps) if size and moved else 1.0
