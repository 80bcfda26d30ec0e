r"""Adagrad: a sum of squares, no momentum.

    s' = s + u²,      w − w' = lr / (1 + (k − 1) lr_decay) · u / (√s' + ε)   at the k-th step.

Source: torch.optim.Adagrad of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import no_steps, root, used
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Adagrad(UpdateRule):
    """``torch.optim.Adagrad``."""

    smooth, sparse, frozen = True, True, "the sum of squares under the gradient"

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers.get("weight_decay", 0.0))

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        start = numbers.get("initial_accumulator_value", 0.0)
        return {"step": no_steps(), "sum": torch.full_like(w, start)}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers = now.numbers
        after = {"step": now.state["step"] + 1, "sum": now.state["sum"].addcmul(now.u, now.u)}
        k = float(after["step"])
        move = Filter(
            direct=float(used(numbers, "lr") / (1 + (k - 1) * used(numbers, "lr_decay"))),
            pre=root(after["sum"]).add_(float(numbers["eps"])).double().reciprocal_(),
        )
        return move, after
