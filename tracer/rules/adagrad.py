r"""Adagrad: a sum of squares, no momentum.

    s' = s + u²,      w − w' = lr / (1 + (k − 1) lr_decay) · u / (√s' + ε)   at the k-th step.

Source: torch.optim.Adagrad of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tracer.rules.filter import Filter
from tracer.rules.rule import Numbers, State, no_steps, root, used


class Adagrad:
    """``torch.optim.Adagrad``."""

    buffer, momentum, adapts = None, None, True

    def remembers(self, used: Callable[[str], bool]) -> bool:
        return True

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers.get("weight_decay", 0.0))

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        start = numbers.get("initial_accumulator_value", 0.0)
        return {"step": no_steps(), "sum": torch.full_like(w, start)}

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        return {"step": state["step"] + 1, "sum": state["sum"].addcmul(u, u, value=1)}

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        k = float(state["step"])
        return Filter(
            direct=float(used(numbers, "lr") / (1 + (k - 1) * used(numbers, "lr_decay"))),
            pre=root(state["sum"]).add_(float(numbers["eps"])).double().reciprocal_(),
        )
