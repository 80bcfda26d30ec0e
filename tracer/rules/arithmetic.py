"""Numbers and tensors as torch.optim computes with them, for rules that follow it to the bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tracer.rules.rule import Now, Numbers


def no_steps() -> Tensor:
    """Return a count of steps, as torch.optim begins one whatever the default dtype and device."""
    return torch.zeros((), dtype=torch.float32, device="cpu")


def is_on(numbers: Numbers, option: str) -> bool:
    """Return whether an option is on; None, for which torch decides, is NaN in a log."""
    return bool(numbers.get(option) == 1)


def used(numbers: Numbers, name: str) -> Any:
    """Return a number, by default 0, as torch computes with it: fused kernels take float64."""
    value = numbers.get(name, 0.0)
    return float(value) if is_on(numbers, "fused") else value


def rate(now: Now) -> Any:
    """Return the rate of a step as torch computes with it: a tensor stays one, but in foreach."""
    lr = now.numbers["lr"]
    return float(lr) if in_foreach(now) else lr


def read(number: Tensor, numbers: Numbers) -> Any:
    """Return a number of a state as torch computes with it: a tensor where ``capturable``."""
    return number if is_on(numbers, "capturable") else float(number)


def in_foreach(now: Now) -> bool:
    """Return whether torch took the step with ``foreach``: off a CPU that is its default."""
    asked = now.numbers.get("foreach", 0.0)
    return now.w.device.type != "cpu" if math.isnan(asked) else asked == 1


def scalar(value: float) -> Tensor:
    """Return a number of a state as torch.optim begins one: float32 unless float64 is default."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(value, dtype=torch.float64 if wide else torch.float32, device="cpu")


def over_size(x: Tensor) -> Tensor:
    """Return ``1 / |x|``, float64, and 0 where ``x`` is 0: times ``x`` it is ``sign(x)``."""
    size = x.double().abs()
    return torch.where(size < torch.finfo(size.dtype).tiny, 0.0, size.reciprocal())


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.sqrt()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return torch.where(v == 0, 0.0, gradients[0] / (2 * v.sqrt()))


def root(v: Tensor) -> Tensor:
    """Return the root of a second moment, which can be differentiated.

    Where it is 0, so is the buffer that is divided by it: then the quotient is the buffer over
    ``ε`` to first order, and the root has no part in it.
    """
    return _Root.apply(v) if v.requires_grad else v.sqrt()  # type: ignore[no-untyped-call]


def coupled(numbers: Numbers) -> float:
    """Return the weight decay that is added to the gradient, unless it is decoupled."""
    decoupled = is_on(numbers, "decoupled_weight_decay")
    return 0.0 if decoupled else float(numbers.get("weight_decay", 0.0))


def decoupled(numbers: Numbers) -> float:
    """Return what share of a parameter its decay takes where an option decouples it."""
    return shrinkage(numbers) if is_on(numbers, "decoupled_weight_decay") else 0.0


def shrinkage(numbers: Numbers) -> float:
    """Return what share of a parameter its decoupled decay takes."""
    pull = used(numbers, "lr") * used(numbers, "weight_decay")
    return 1 - float(1 - pull) if isinstance(pull, Tensor) else float(pull)
