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

from replay.gradients.workspace import workspace
from replay.trained import TrainedStep
from replay.trajectory import Transition

_BLOCK = 1 << 17  # elements: a few float64 temporaries of this size stay near the processor

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
    def vectors(self) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Gradient, penalty and parameter."""
        return self.gradient, self.penalty, self.w

    def with_vectors(self, gradient: Tensor | None, penalty: Tensor | None, w: Any) -> Drive:
        """Return the same of other vectors."""
        return Drive(gradient, penalty, w, self.factor, self.decay)

    @property
    def whole(self) -> Tensor:
        """All of ``u``, in the parameter's dtype."""
        plain = self.penalty is None and self.factor == 1 and not self.decay
        if self.gradient is not None and plain:
            return self.gradient.to(self.w)
        found = total(self._pair(self.gradient, self.penalty, self.w))
        return torch.zeros_like(self.w) if found is None else found.to(self.w)

    def blocks(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield blocks of ``u`` of data and of the regulariser, float64; None is zero.

        The next ones may overwrite them.
        """
        size = block_size(self.w)
        vectors = (cut(v, size) for v in self.vectors)
        return (self._pair(g, p, w, "u") for g, p, w in zip(*vectors, strict=False))

    def _pair(
        self, gradient: Tensor | None, penalty: Tensor | None, w: Tensor, role: str | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        data = _times(gradient, self.factor, role and f"{role} of data")
        pull = _times(penalty, self.factor, role and f"{role} of penalty")
        if self.decay:
            shrunk = _times(w, self.decay, role and f"{role} of decay")
            pull = shrunk if pull is None or shrunk is None else shrunk.add_(pull)
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
    if vector is None:
        return itertools.repeat(None)
    flat = vector.reshape(-1)
    return (flat,) if len(flat) <= size else torch.split(flat, size)


def double(vector: Tensor, role: str | None = None) -> Tensor:
    """Return a copy in float64; with a role, until the next call for it."""
    if role is None:
        return vector.to(torch.float64, copy=True)
    like = torch.empty(0, dtype=torch.float64, device=vector.device)
    return workspace(role, like, len(vector)).copy_(vector)


def _times(vector: Tensor | None, factor: float, role: str | None) -> Tensor | None:
    if vector is None:
        return None
    found = double(vector, role)
    return found if factor == 1 else found.mul_(factor)
