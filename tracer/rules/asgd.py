r"""ASGD: a rate that falls, and a decay of its own.

    w − w' = η u + λ η w,      η' = lr / (1 + λ lr k)^α   after the k-th step, before the first lr.

So a scheduled rate acts one step late. The average of the weights, ``ax``, has no part in steps.
Torch keeps ``η`` in float32, in a float64 run, too: taken from its formula, it is off by 1e-8.
With ``foreach`` torch computes it in float32, too. Source: torch.optim.ASGD of torch 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.rules.arithmetic import coupled, in_foreach, is_on, no_steps, scalar
from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class ASGD(UpdateRule):
    """``torch.optim.ASGD``."""

    counts = ("step", "eta")
    smooth = True
    frozen = ""

    def coupled_decay(self, numbers: Numbers) -> float:
        return coupled(numbers)

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        return {"step": no_steps(), "eta": scalar(float(numbers["lr"]))}

    def step(self, now: Now) -> tuple[Filter, State]:
        numbers, eta, count = now.numbers, now.state["eta"], now.state["step"] + 1
        lambd, lr = float(numbers["lambd"]), numbers["lr"]
        together, captured = in_foreach(now), is_on(numbers, "capturable")
        k = count if together or captured else float(count)
        fallen = torch.as_tensor(lr / ((1 + lambd * lr * k) ** float(numbers["alpha"])))
        size = float(eta)
        pull = 1 - float(1 - lambd * eta) if captured and not together else lambd * size
        move = Filter(direct=size, decoupled=pull)
        return move, {"step": count, "eta": fallen.to(eta)}
