r"""SGD with momentum, dampening, Nesterov and weight decay.

    b' = μ b + (1 − dampening) u   (first: b' = u),      w − w' = lr b'   (Nesterov: lr (u + μ b')).

Source: torch.optim.SGD of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

from tracer.rules.filter import Filter
from tracer.rules.rule import Now, Numbers, State, UpdateRule


class SGD(UpdateRule):
    """``torch.optim.SGD``."""

    buffer, momentum, adapts, smooth = "momentum_buffer", "momentum", False, True
    sparse = True
    frozen = ""

    def remembers(self, used: Callable[[str], bool]) -> bool:
        return used("momentum")

    def coupled_decay(self, numbers: Numbers) -> float:
        return float(numbers.get("weight_decay", 0.0))

    def step(self, now: Now) -> tuple[Filter, State]:
        return self._filter(now.numbers, now.first), now.state

    def _filter(self, numbers: Numbers, first: bool) -> Filter:
        lr, mu = float(numbers["lr"]), float(numbers.get("momentum", 0.0))
        if mu == 0:  # the buffer is neither used nor changed
            return Filter(direct=lr)
        keep, gain = (0.0, 1.0) if first else (mu, float(1 - numbers.get("dampening", 0.0)))
        if numbers.get("nesterov"):
            return Filter(lr, lr * mu, keep, gain)
        return Filter(0.0, lr, keep, gain)
