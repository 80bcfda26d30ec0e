r"""SparseAdam: Adam of the rows that a sparse gradient has; all else of the others stays as it is.

    b' = β₁ b + (1 − β₁) u,      v' = β₂ v + (1 − β₂) u²,
    w − w' = lr √(1 − β₂ᵏ) / (1 − β₁ᵏ) · b' / (√v' + ε)

of those rows, at the parameter's k-th step. A row that was looked up is one of them even if its
gradient is 0. Source: torch.optim.SparseAdam of torch 2.13, whose ``k`` is no tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tracer.errors import UnsupportedRuleError
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class SparseAdam(UpdateRule):
    """``torch.optim.SparseAdam``."""

    buffer, momentum, sparse = "exp_avg", "betas.0", True
    frozen = "the second moments under the momentum, and which rows had a gradient"

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": _count(0), "exp_avg_sq": torch.zeros_like(w)}

    def held(
        self, stored: State, group: Mapping[str, Any], w: Callable[[], Tensor]
    ) -> tuple[State, Tensor | None]:
        rest, buffer = super().held(stored, group, w)
        return {k: _count(v) if k == "step" else v for k, v in rest.items()}, buffer

    def step(self, now: Now) -> tuple[Filter, State]:
        if now.rows is None:
            raise UnsupportedRuleError(
                "SparseAdam moved the rows of a sparse gradient, but the replay's gradient of a "
                f"parameter {tuple(now.w.shape)} is dense, so nobody knows which rows they were.\n"
                "  1. Build task.model as in the run: torch.nn.Embedding(..., sparse=True)."
            )
        b1, b2, lr, eps = (float(now.numbers[k]) for k in ("betas.0", "betas.1", "lr", "eps"))
        old, k = now.state["exp_avg_sq"], float(now.state["step"]) + 1
        v = torch.where(now.rows, old + (now.u.square() - old) * (1 - b2), old)
        post = v.sqrt().add_(eps).double().reciprocal_()
        move = Filter(
            through=lr * (1 - b2**k) ** 0.5 / (1 - b1**k),
            keep=b1,
            gain=1 - b1,
            post=post.masked_fill_(~now.rows, 0.0),
            still=(~now.rows).double(),
        )
        return move, {"step": _count(k), "exp_avg_sq": v}


def _count(steps: Any) -> Tensor:
    return torch.as_tensor(steps, dtype=torch.float32, device="cpu")
