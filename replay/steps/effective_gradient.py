r"""What an update rule is given at a step: gradients with their sign, and the decay added to them.

u = ±κ (gradient of the losses + gradient of the penalty) + decay w
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.state import State
from replay.evaluate.trained_step import TrainedStep
from replay.vectors.blocks import cut, double, total


@dataclass(frozen=True)
class EffectiveGradient:
    """``u`` of one parameter.

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

    def with_vectors(
        self, gradient: Tensor | None, penalty: Tensor | None, w: Any
    ) -> EffectiveGradient:
        """Return the same of other vectors."""
        return EffectiveGradient(gradient, penalty, w, self.factor, self.decay)

    def whole(self) -> Tensor:
        """Return all of ``u``, in the parameter's dtype."""
        plain = self.penalty is None and self.factor == 1 and not self.decay
        if self.gradient is not None and plain:
            return self.gradient.to(self.w)
        found = total(self._parts(self.gradient, self.penalty, self.w))
        return torch.zeros_like(self.w) if found is None else found.to(self.w)

    def blocks(self, size: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield blocks of ``u`` of data and of the regulariser, float64; None is zero.

        The next ones may overwrite them.

        Args:
            size: How many elements a block has.
        """
        vectors = (cut(v, size) for v in self.vectors)
        return (self._parts(g, p, w, "u") for g, p, w in zip(*vectors, strict=False))

    def _parts(
        self, gradient: Tensor | None, penalty: Tensor | None, w: Tensor, role: str | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        data = _times(gradient, self.factor, role and f"{role} of data")
        pull = _times(penalty, self.factor, role and f"{role} of penalty")
        if self.decay:
            shrunk = _times(w, self.decay, role and f"{role} of decay")
            pull = shrunk if pull is None or shrunk is None else shrunk.add_(pull)
        return data, pull


def effective_gradients(
    before: State,
    trained: TrainedStep,
    decays: dict[str, float],
    factors: dict[str, float],
    device: torch.device,
) -> dict[str, EffectiveGradient]:
    """Return the effective gradient of each parameter.

    Args:
        before: The state before the step.
        trained: The step's gradients there.
        decays: Coupled weight decay of every parameter that moved.
        factors: ``±κ`` of each.
        device: Where to compute.
    """
    w, gradient, penalty = before.parameters, trained.gradient, trained.penalty
    return {
        n: EffectiveGradient(gradient.get(n), penalty.get(n), w[n].to(device), factors[n], decay)
        for n, decay in decays.items()
    }


def _times(vector: Tensor | None, factor: float, role: str | None) -> Tensor | None:
    if vector is None:
        return None
    found = double(vector, role)
    return found if factor == 1 else found.mul_(factor)
