"""Weight decay by pytorch_optimizer's options: decoupled unless ``weight_decouple`` is off."""

from __future__ import annotations

from tracer.rules.rule import Numbers


def coupled(numbers: Numbers) -> float:
    """Return the weight decay that is added to the gradient."""
    return 0.0 if numbers.get("weight_decouple", 1.0) else max(0.0, numbers["weight_decay"])


def decoupled(numbers: Numbers) -> float:
    """Return what share of a parameter its decoupled decay takes."""
    if not numbers.get("weight_decouple", 1.0):
        return 0.0
    return float(numbers["weight_decay"] * (1.0 if numbers.get("fixed_decay") else numbers["lr"]))
