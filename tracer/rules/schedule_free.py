r"""Schedule-free SGD and AdamW: gradients are taken at ``y``, between a fast state and its average.

    z' = z − η u,      x' = (1 − c) x + c z',      y = β x + (1 − β) z,      c = p / (sum of all p)

with ``η`` the rate after warm-up's share and ``p = (k + 1)^r (largest η)^power``. The parameter is
``y``, in train mode; ``x``, the average, is what ``eval()`` puts in its place. Of the two linear
states ``y`` and ``z`` a step needs their difference, ``b = y − z``, alone:

    b' = (1 − c) (b + η β u),      y − y' = η (1 − β) u + c / (1 − c) b'

AdamW: ``u`` becomes ``u / (√(v' / (1 − β₂ᵏ)) + ε) + decay y``. Source: Defazio et al., The Road
Less Scheduled (2024), as schedulefree 1.4 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class ScheduleFreeSGD(UpdateRule):
    """``schedulefree.SGDScheduleFree``."""

    buffer, momentum, adapts = "z", "momentum", False
    frozen = ""

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers["weight_decay"])

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        rest, z = super().held(stored, group, w)
        return rest, None if z is None else w().to(z.device).double() - z.double()

    def step(self, now: Now) -> tuple[Filter, State]:
        return _move(now.numbers, float(now.numbers["momentum"])), {}


class ScheduleFreeAdamW(ScheduleFreeSGD):
    """``schedulefree.AdamWScheduleFree``."""

    momentum, adapts = "betas.0", True
    frozen = "the second moments under the gradient"

    def coupled_decay(self, numbers: Numbers) -> float:
        return 0.0

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"exp_avg_sq": torch.zeros_like(w)}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, b2 = now.numbers, float(now.numbers["betas.1"])
        v = now.state["exp_avg_sq"].mul(b2).addcmul_(now.u, now.u, value=1 - b2)
        sizes = v.div(1 - b2 ** (numbers["k"] + 1)).sqrt_().add_(numbers["eps"])
        pre, decay = sizes.double().reciprocal_(), float(numbers["weight_decay"])
        return _move(numbers, float(numbers["betas.0"]), pre, decay), {"exp_avg_sq": v}


def _move(numbers: Numbers, beta: float, pre: Tensor | None = None, decay: float = 0.0) -> Filter:
    k, warmup = numbers["k"], numbers["warmup_steps"]
    rate = float(numbers["lr"]) * ((k + 1) / warmup if k < warmup else 1.0)
    weight = (k + 1) ** numbers["r"] * max(rate, numbers["lr_max"]) ** numbers["weight_lr_power"]
    share = weight / (numbers["weight_sum"] + weight) if weight else 0.0
    if share == 1:  # the first step: the states are the same until then, and after it
        return Filter(direct=rate, keep=0.0, pre=pre, behind=decay)
    left = 1 - share
    return Filter(rate * (1 - beta), share / left, left, rate * beta * left, pre, behind=decay)
