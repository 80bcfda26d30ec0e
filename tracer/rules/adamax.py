r"""Adamax: Adam over the largest gradient that is not yet forgotten.

    b' = β₁ b + (1 − β₁) u,      m' = max(β₂ m, |u| + ε),      w − w' = lr / (1 − β₁ᵏ) · b' / m'.

Source: torch.optim.Adamax of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import coupled, no_steps, rate, read
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Adamax(UpdateRule):
    """``torch.optim.Adamax``."""

    buffer, momentum, smooth = "exp_avg", "betas.0", True
    linear = ("exp_inf",)
    frozen = "the running maximum under the momentum"

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "exp_inf": torch.zeros_like(w)}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, count, b1 = now.numbers, now.state["step"] + 1, float(now.numbers["betas.0"])
        largest = now.state["exp_inf"] * numbers["betas.1"]
        largest = torch.maximum(largest, now.u.abs() + numbers["eps"])
        left = 1 - b1 ** read(count, numbers)
        as_tensor = isinstance(left, Tensor)
        move = Filter(
            through=1 / float(left / numbers["lr"]) if as_tensor else float(rate(now) / left),
            keep=b1,
            gain=1 - b1,
            post=largest.double().reciprocal(),
        )
        return move, {"step": count, "exp_inf": largest}
