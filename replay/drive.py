"""What drives a step: gradients of the losses and of the penalty, and decay that goes with them.

Vectors of the model's size are taken in float64, a block of elements at a time: new pages and
memory cost more than the arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replay.trained import TrainedStep
from replay.trajectory import Transition

_BLOCK = 1 << 16  # elements: a few float64 temporaries of this size stay near the processor

Parts = tuple[Tensor | None, Tensor | None, Tensor | None]  # data, regulariser, history


@dataclass(frozen=True)
class Drive:
    """``u = factor (gradient + penalty) + decay w`` of one parameter.

    Attributes:
        gradient: Of the batch's losses; None is zero.
        penalty: Likewise.
        w: The parameter.
        factor: ``±κ``.
        decay: Coupled weight decay.
    """

    gradient: Tensor | None
    penalty: Tensor | None
    w: Tensor
    factor: float
    decay: float

    @property
    def whole(self) -> Tensor:
        """All of ``u``, in the parameter's dtype."""
        plain = self.penalty is None and self.factor == 1 and not self.decay
        if self.gradient is not None and plain:
            return self.gradient.to(self.w)
        found = total(self._pair(self.gradient, self.penalty, self.w))
        return torch.zeros_like(self.w) if found is None else found.to(self.w)

    def blocks(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield blocks of ``u`` of data and of the regulariser, float64; None is zero."""
        size = block_size(self.w)
        vectors = (cut(v, size) for v in (self.gradient, self.penalty, self.w))
        return (self._pair(g, p, w) for g, p, w in zip(*vectors, strict=False))

    def _pair(
        self, gradient: Tensor | None, penalty: Tensor | None, w: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        data, pull = (_times(side, self.factor) for side in (gradient, penalty))
        if self.decay:
            shrunk = w.double() * self.decay
            pull = shrunk if pull is None else pull + shrunk
        return data, pull


def drives(
    transition: Transition,
    trained: TrainedStep,
    decays: dict[str, float],
    factors: dict[str, float],
    device: torch.device,
) -> dict[str, Drive]:
    """Return what drives each parameter.

    Args:
        transition: The logged step.
        trained: Its gradients.
        decays: Coupled weight decay of every parameter that moved.
        factors: ``±κ`` of each.
        device: Where to compute.
    """
    w, gradient, penalty = transition.before.parameters, trained.gradient, trained.penalty
    return {
        n: Drive(gradient.get(n), penalty.get(n), w[n].to(device), factors[n], decay)
        for n, decay in decays.items()
    }


def total(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Return the sum of parts; None is zero."""
    found = [part for part in parts if part is not None]
    return (found[0] if len(found) == 1 else torch.stack(found).sum(0)) if found else None


def block_size(like: Tensor) -> int:
    """Return how many elements a block has; all where caches do not decide."""
    return _BLOCK if like.device.type == "cpu" else max(1, like.numel())


def cut(vector: Tensor | None, size: int) -> Iterable[Any]:
    """Return a tensor's elements in flat blocks; for ever None if there is none."""
    return itertools.repeat(None) if vector is None else torch.split(vector.reshape(-1), size)


def square(vector: Tensor) -> float:
    """Return ``‖vector‖²``, in float64."""
    found = (block.double() for block in cut(vector, block_size(vector)))
    return sum(float(torch.dot(block, block)) for block in found)


def _times(vector: Tensor | None, factor: float) -> Tensor | None:
    if vector is None or factor == 1:
        return None if vector is None else vector.double()
    return vector.double() * factor
