r"""LARS: SGD whose gradient is made as large as the parameter, where that is a matrix or more.

    r = c ‖w‖ / (‖u‖ + decay ‖w‖),      b' = μ b + (1 − dampening) r (u + decay w),
    w − w' = lr b'   (Nesterov: lr (r (u + decay w) + μ b');  vectors: r = 1, without decay).

Source: You et al. (2017), as pytorch_optimizer 4.1 has it.
"""

from __future__ import annotations

import torch

from tracer.rules.filter import Filter
from tracer.rules.rule import Now, State, UpdateRule


class LARS(UpdateRule):
    """``pytorch_optimizer.LARS``."""

    buffer, momentum = "momentum_buffer", "momentum"
    frozen = "the trust ratio"

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, is_matrix = now.numbers, now.w.dim() > 1
        lr, mu = float(numbers["lr"]), float(numbers["momentum"])
        decay = float(numbers["weight_decay"]) if is_matrix else 0.0
        trust = _trust(now, decay) if is_matrix else 1.0
        if mu == 0:
            return Filter(direct=lr * trust, behind=decay), {}
        gain = (1 - float(numbers["dampening"])) * trust
        if numbers["nesterov"]:
            return Filter(lr * trust, lr * mu, mu, gain, behind=decay), {}
        return Filter(0.0, lr, mu, gain, behind=decay), {}


def _trust(now: Now, decay: float) -> float:
    size, moved = float(torch.linalg.norm(now.w)), float(torch.linalg.norm(now.u))
    whole = moved + decay * size
    return float(now.numbers["trust_coefficient"]) * size / whole if size and whole else 1.0
