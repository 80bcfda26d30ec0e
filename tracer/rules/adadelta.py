r"""Adadelta: the size of past moves over the size of past gradients.

    v' = ρ v + (1 − ρ) u²,      D = √((a + ε) / (v' + ε)),      a' = ρ a + (1 − ρ) (D u)²,
    w − w' = lr D u.

Source: torch.optim.Adadelta of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import coupled, no_steps
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Adadelta(UpdateRule):
    """``torch.optim.Adadelta``."""

    smooth = True
    frozen = "mean squares of moves and gradients"

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        zero = torch.zeros_like(w)
        return {"step": no_steps(), "square_avg": zero, "acc_delta": zero}

    def step(self, now: Now) -> tuple[Filter, State]:
        state, rho, eps = now.state, float(now.numbers["rho"]), float(now.numbers["eps"])
        v = state["square_avg"].mul(rho).addcmul_(now.u, now.u, value=1 - rho)
        scale = state["acc_delta"].add(eps).sqrt() / v.add(eps).sqrt()
        delta = scale * now.u
        moved = state["acc_delta"].mul(rho).addcmul_(delta, delta, value=1 - rho)
        move = Filter(direct=float(now.numbers["lr"]), pre=scale.double())
        return move, {"step": state["step"] + 1, "square_avg": v, "acc_delta": moved}
