r"""Rprop: a step for each element, longer while its gradient keeps its sign.

    s' = s η₊ where u and the gradient before agree in sign, s η₋ where not, s where one is 0;
    u' = 0 where they do not agree, else u;      w − w' = s' sign(u') = (s' / |u'|) u'.

Source: torch.optim.Rprop of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import no_steps, over_size
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class Rprop(UpdateRule):
    """``torch.optim.Rprop``."""

    linear = ("prev",)
    frozen = "each element's step over the size of its gradient"

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        sizes = torch.full_like(w, float(numbers["lr"]))
        return {"step": no_steps(), "prev": torch.zeros_like(w), "step_size": sizes}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, state = now.numbers, now.state
        agree = now.u * state["prev"]
        factor = torch.ones_like(agree)
        factor[agree > 0], factor[agree < 0] = numbers["etas.1"], numbers["etas.0"]
        least, most = float(numbers["step_sizes.0"]), float(numbers["step_sizes.1"])
        sizes = (state["step_size"] * factor).clamp_(least, most)
        u = now.u.masked_fill(agree < 0, 0.0)
        after = {"step": state["step"] + 1, "prev": u, "step_size": sizes}
        return Filter(direct=1.0, pre=sizes * over_size(u)), after
