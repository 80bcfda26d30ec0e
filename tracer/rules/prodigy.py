r"""Prodigy: Adam that finds its own rate, ``d``.

    b' = β₁ b + d (1 − β₁) u,      v' = β₂ v + d² (1 − β₂) u²,
    w − w' = d lr f · b' / (√v' + d' ε) + d lr f decay w

with ``d'`` the next step's, which is found from gradients of all parameters, and Adam's correction
``f`` if that is asked for. Decay is part of ``u`` unless ``decouple``. A group whose rate is 0, and
others' is not, moves on at the rate of those, by what it has of ``b`` and ``v``. Source: Mishchenko
and Defazio (2023), as prodigyopt 1.1 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Prodigy(UpdateRule):
    """``prodigyopt.Prodigy``."""

    buffer, momentum = "exp_avg", "betas.0"
    frozen = "the rate that it found, and the second moments under the momentum"
    after, largest = ("d",), ("lr",)

    def coupled_decay(self, numbers: Numbers) -> float:
        return 0.0 if numbers["decouple"] else float(numbers["weight_decay"])

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"exp_avg_sq": torch.zeros_like(w)}

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        return {"exp_avg_sq": stored["exp_avg_sq"]}, stored.get("exp_avg")

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers = now.numbers
        b1, b2, d, k = (numbers[name] for name in ("betas.0", "betas.1", "d", "k"))
        rate, looks, v = numbers["lr largest"], bool(numbers["lr"]), now.state["exp_avg_sq"]
        if not rate:  # it does nothing then, as before a warm-up
            return Filter(keep=1.0, gain=0.0), now.state
        if looks:
            v = v.mul(b2).addcmul_(now.u, now.u, value=d * d * (1 - b2))
        right = (1 - b2 ** (k + 1)) ** 0.5 / (1 - b1 ** (k + 1))
        size = d * rate * (right if numbers["use_bias_correction"] else 1.0)
        move = Filter(
            direct=0.0 if b1 else size * numbers["d after"],
            through=size if b1 else 0.0,
            keep=b1 if looks else 1.0,
            gain=d * (1 - b1) if b1 and looks else 0.0,
            post=v.sqrt().add_(numbers["d after"] * numbers["eps"]).double().reciprocal_(),
            decoupled=size * numbers["weight_decay"] if numbers["decouple"] else 0.0,
        )
        return move, {"exp_avg_sq": v}
