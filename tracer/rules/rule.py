"""What an update rule is: the one description of it that tracing and replay share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from tracer.rules.filter import Filter

# hyperparameters of a group at a step: one that was a tensor is one, 0-dimensional, of its dtype
Numbers: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Tensor]  # of one parameter, by torch.optim's names


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


class UpdateRule(Protocol):
    """How one class of ``torch.optim`` moves a parameter, given the gradient that it applies."""

    @property
    def buffer(self) -> str | None:
        """Name of the momentum buffer in its state; None if it has none."""

    @property
    def momentum(self) -> str | None:
        """Hyperparameter (``betas.0``: the first of a tuple) with the share that is kept of it."""

    @property
    def adapts(self) -> bool:
        """Whether it has second moments."""

    def remembers(self, used: Callable[[str], bool]) -> bool:
        """Return whether its steps depend on earlier ones.

        Args:
            used: Says whether a hyperparameter was anything but 0 in the run.
        """

    def coupled_decay(self, numbers: Numbers) -> float:
        """Return the weight decay that is added to the gradient."""

    def initial(self, w: Tensor, numbers: Numbers) -> State:
        """Return the state before a parameter's first step, without the buffer."""

    def observe(self, state: State, u: Tensor, numbers: Numbers) -> State:
        """Return the state after a step, without the buffer: counts and second moments.

        Args:
            state: Before the step.
            u: The effective gradient, which is the applied one plus coupled decay.
            numbers: The group's hyperparameters.
        """

    def filter(self, state: State, numbers: Numbers, *, first: bool) -> Filter:
        """Return the step as a linear map of ``u``.

        Args:
            state: After the step.
            numbers: The group's hyperparameters.
            first: There was no buffer before it.
        """
