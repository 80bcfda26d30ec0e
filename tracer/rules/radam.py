r"""RAdam: Adam whose denominator is left out until its variance can be told.

    ρ∞ = 2 / (1 − β₂) − 1,      ρₖ = ρ∞ − 2 k β₂ᵏ / (1 − β₂ᵏ),
    w − w' = lr / (1 − β₁ᵏ) · b' · (r √(1 − β₂ᵏ) / (√v' + ε)   if ρₖ > 5, else 1),
    r² = (ρₖ − 4)(ρₖ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₖ)

with Adam's ``b'`` and ``v'``. Source: torch.optim.RAdam of torch 2.13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracer.rules.adam import second_moment
from tracer.rules.arithmetic import coupled, decoupled, in_foreach, is_on, no_steps, read, root
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class RAdam(UpdateRule):
    """``torch.optim.RAdam``."""

    buffer, momentum, smooth = "exp_avg", "betas.0", True
    frozen = "the second moments under the momentum, and their rectification"

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "exp_avg_sq": torch.zeros_like(w)}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, count, v = now.numbers, now.state["step"] + 1, second_moment(now)
        b1, b2, k = float(numbers["betas.0"]), float(numbers["betas.1"]), read(count, numbers)
        first, left, longest = 1 - b1**k, 1 - b2**k, 2 / (1 - b2) - 1
        length = longest - 2 * k * b2**k / left
        rectified: Any = 1.0
        post = None
        if length > 5:
            top = (length - 4) * (length - 2) * longest
            rectified = (top / ((longest - 4) * (longest - 2) * length)) ** 0.5
            post = root(v).add_(numbers["eps"]).double().reciprocal_()
        move = Filter(
            through=_size(now, first, rectified, 1.0 if post is None else left**0.5),
            keep=b1,
            gain=1 - b1,
            post=post,
            decoupled=decoupled(numbers),
        )
        return move, {"step": count, "exp_avg_sq": v}


def _size(now: Now, first: Any, rectified: Any, left: Any) -> float:
    """Return the factor of the momentum, in torch's order of operations."""
    lr = now.numbers["lr"]
    if not in_foreach(now):
        return float(lr) / float(first) * float(rectified) * float(left)
    if is_on(now.numbers, "capturable"):
        return float(torch.ones_like(first) * left * lr * rectified / first)
    return float(left * (lr * rectified / first))
