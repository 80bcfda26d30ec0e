r"""Lion: the sign of a momentum that the newest gradient has a larger part in.

    c = β₁ b + (1 − β₁) u,      b' = β₂ b + (1 − β₂) u,      w − w' = lr sign(c) + lr decay w,

where ``sign(c) = c / |c|`` and ``c = β₁/β₂ b' + (1 − β₁/β₂) u``. Source: Chen et al., Symbolic
Discovery of Optimization Algorithms (2023); lion_pytorch 0.2.5 and pytorch_optimizer 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.errors import UnsupportedRuleError
from tracer.rules.arithmetic import over_size
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule
from tracer.rules.weight_decouple import coupled, decoupled


class Lion(UpdateRule):
    """``Lion`` of lion_pytorch and of pytorch_optimizer."""

    buffer, momentum = "exp_avg", "betas.1"
    frozen = "the sizes of what signs were taken of"
    refuses = ("use_gc", "adanorm", "cautious")

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def step(self, now: Now) -> tuple[Filter, State]:
        lr, b1, b2 = (float(now.numbers[name]) for name in ("lr", "betas.0", "betas.1"))
        if not b2 and b1:
            raise UnsupportedRuleError(
                "Lion with a second beta of 0 forgets its momentum in the step that uses it, and "
                "its steps are split by what is left of it.\n"
                "  1. Train with betas=(0.0, 0.0), or a second beta above 0;\n"
                "  2. or ask for tracincp, tracin-sgd or the measured drops (Replay.drops)."
            )
        ahead = b1 / b2 if b1 else 0.0
        move = Filter(
            direct=lr * (1 - ahead),
            through=lr * ahead,
            keep=b2,
            gain=1 - b2,
            post=over_size(_mixed(now.buffer, now.u, b1)),
            decoupled=decoupled(now.numbers),
        )
        return move, {}


def _mixed(buffer: Tensor, u: Tensor, share: float) -> Tensor:
    return torch.lerp(u, buffer, share)
