r"""NAdam: Adam that looks one step of its momentum ahead.

    μₖ = β₁ (1 − 0.96^(k decay) / 2),      Πₖ = μ₁ ⋯ μₖ,
    w − w' = (lr (1 − μₖ) / (1 − Πₖ) · u + lr μₖ₊₁ / (1 − Πₖ₊₁) · b') / (√(v' / (1 − β₂ᵏ)) + ε)

with Adam's ``b'`` and ``v'``. Torch keeps the product in float32, in a float64 run, too. Source:
torch.optim.NAdam of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.adam import second_moment
from tracer.rules.arithmetic import (
    coupled,
    decoupled,
    in_foreach,
    no_steps,
    rate,
    read,
    root,
    scalar,
)
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class NAdam(UpdateRule):
    """``torch.optim.NAdam``."""

    buffer, momentum, smooth = "exp_avg", "betas.0", True
    counts = ("step", "mu_product")
    frozen = "the second moments under gradient and momentum"

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "mu_product": scalar(1.0), "exp_avg_sq": torch.zeros_like(w)}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, lr, together = now.numbers, rate(now), in_foreach(now)
        count, b1 = now.state["step"] + 1, float(numbers["betas.0"])
        k, later = read(count, numbers), numbers["momentum_decay"]
        ahead = k * later + later if together else (k + 1) * later
        mu, ahead = (b1 * (1 - 0.5 * 0.96**power) for power in (k * later, ahead))
        product, v = now.state["mu_product"] * mu, second_moment(now)
        done, left = read(product, numbers), 1 - numbers["betas.1"] ** k
        sizes = root(v) / left**0.5 if together else root(v / left)
        move = Filter(
            direct=float(lr * (1 - mu) / (1 - done)),
            through=float(lr * ahead / (1 - done * ahead)),
            keep=b1,
            gain=1 - b1,
            post=sizes.add_(numbers["eps"]).double().reciprocal_(),
            decoupled=decoupled(numbers),
        )
        return move, {"step": count, "mu_product": product, "exp_avg_sq": v}
