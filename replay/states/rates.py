"""Learning rates of a step, for methods that multiply by them."""

from __future__ import annotations

import math
from collections.abc import Collection

from tracer.errors import UnsupportedRuleError
from tracer.records import Step


def learning_rates(step: Step, names: Collection[str], method: str) -> dict[str, float]:
    """Return the learning rate of each of some parameters at a step.

    Args:
        step: As logged.
        names: The parameters; those in no group are left out.
        method: What multiplies by it, for the message.

    Raises:
        UnsupportedRuleError: The log has none; some optimizers find their own at each step.
    """
    rates = {name: rate for name, rate in step.learning_rates.items() if name in names}
    for name, rate in rates.items():
        if not math.isfinite(rate):
            raise UnsupportedRuleError(
                f"{method} multiplies by the learning rate, and that of {name!r} at step "
                f"{step.index} is {rate:g} in the log: the optimizer's group holds no number under "
                '"lr".\n'
                "  1. Ask for what needs none: the measured drops (Replay.drops), for example;\n"
                "  2. or train with a learning rate of your own, lr=0.001 for example."
            )
    return rates
