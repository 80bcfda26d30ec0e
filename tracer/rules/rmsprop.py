r"""RMSprop, centered or not, with momentum behind the denominator.

    v' = α v + (1 − α) u²,      D = 1 / (√v' + ε),
    b' = μ b + D u,      w − w' = lr b'   (without momentum: lr D u);

centered, ``v'`` loses the square of the mean gradient, ``g' = α g + (1 − α) u``. Source:
torch.optim.RMSprop of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import no_steps, root
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class RMSprop(UpdateRule):
    """``torch.optim.RMSprop``."""

    buffer, momentum, smooth = "momentum_buffer", "momentum", True
    frozen = "the mean square under the gradient"

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers.get("weight_decay", 0.0))

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        state = {"step": no_steps(), "square_avg": torch.zeros_like(w)}
        return {**state, "grad_avg": torch.zeros_like(w)} if numbers.get("centered") else state

    def step(self, now: Now) -> tuple[Filter, State]:
        after = _observed(now.state, now.u, now.numbers)
        lr, mu = float(now.numbers["lr"]), float(now.numbers.get("momentum", 0.0))
        pre = _denominator(after, now.numbers).double().reciprocal_()
        return Filter(0.0, lr, mu, 1.0, pre) if mu > 0 else Filter(direct=lr, pre=pre), after


def _observed(state: State, u: Tensor, numbers: Numbers) -> State:
    alpha = numbers["alpha"]
    v = state["square_avg"].mul(alpha).addcmul_(u, u, value=float(1 - alpha))
    after = {**state, "step": state["step"] + 1, "square_avg": v}
    if numbers.get("centered"):
        after["grad_avg"] = state["grad_avg"].lerp(u, float(1 - alpha))
    return after


def _denominator(state: State, numbers: Numbers) -> Tensor:
    v = state["square_avg"]
    if numbers.get("centered"):
        v = v.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    return root(v).add_(numbers["eps"])
