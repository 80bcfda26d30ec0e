r"""Adafactor: second moments from rows and columns, moves as large as the parameter.

    V' = r' c' / mean(r')   (vectors: v'),      with r', c', v' mean squares, kept by 1 − k^decay,
    U = u / max(√V', ε₁),      w − w' = max(ε₂, RMS(w)) min(lr, 1/√k) / max(1, RMS(U) / d) · U.

Decay is decoupled. Source: torch.optim.Adafactor of torch 2.13.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracer.rules.arithmetic import no_steps, shrinkage
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Adafactor(UpdateRule):
    """``torch.optim.Adafactor``."""

    frozen = "row and column moments, the parameter's size, and the clipping of the update"

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        if w.dim() < 2:
            return {"step": no_steps(), "variance": torch.zeros_like(w)}
        rows, columns = w[..., :1], w[..., :1, :]
        found = {"row_var": torch.zeros_like(rows), "col_var": torch.zeros_like(columns)}
        return {"step": no_steps(), **found}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, w, count = now.numbers, now.w, now.state["step"] + 1
        k, lr = float(count), numbers["lr"]
        least = float(numbers["eps.0"])
        least = torch.finfo(w.dtype).eps if math.isnan(least) else least
        variance, moments = _variance(now, k ** float(numbers["beta2_decay"]), least)
        scale = variance.clamp(min=least * least).rsqrt()
        size = max(float(numbers["eps.1"]), _rms(w)) * min(lr, 1 / k**0.5)
        size = float(size / max(1.0, _rms(scale * now.u) / float(numbers["d"])))
        move = Filter(direct=size, pre=scale.double(), decoupled=shrinkage(numbers))
        return move, {"step": count, **moments}


def _rms(x: Tensor) -> float:
    return float(x.norm(2)) / float(x.numel() ** 0.5)


def _variance(now: Now, new: float, least: float) -> tuple[Tensor, State]:
    """Return the mean squares of each element, and what is kept of them."""
    state, u = now.state, now.u
    if u.dim() < 2:
        variance = state["variance"].lerp(u * u, new)
        return variance, {"variance": variance}
    means = (u.norm(dim=dim, keepdim=True).square_().div_(u.size(dim)) for dim in (-1, -2))
    before = state["row_var"], state["col_var"]
    rows, columns = (b.lerp(mean, new) for b, mean in zip(before, means, strict=True))
    whole = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=least))
    return whole, {"row_var": rows, "col_var": columns}
