"""Matrices that multiply a parameter from its sides, one for each of its dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sides:
    """The linear map ``x ×₀ A₀ ×₁ A₁ ...``; of a matrix it is ``A₀ x A₁ᵀ``.

    Attributes:
        shape: Of a parameter, or one of as many elements.
        matrices: One for each dimension, square; None is 1.

    >>> Sides((2, 1), (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), None)).times(torch.tensor([3.0, 4]))
    tensor([4., 3.])
    """

    shape: tuple[int, ...]
    matrices: tuple[Tensor | None, ...]

    @property
    def transposed(self) -> Sides:
        """The transpose of the map."""
        return Sides(self.shape, tuple(None if a is None else a.mT for a in self.matrices))

    @property
    def tensors(self) -> list[Tensor]:
        """All matrices that there are."""
        return [a for a in self.matrices if a is not None]

    def to(self, dtype: torch.dtype) -> Sides:
        """Return the same in a dtype."""
        return Sides(self.shape, tuple(None if a is None else a.to(dtype) for a in self.matrices))

    def times(self, x: Tensor) -> Tensor:
        """Return the products with one or several parameters, each flat or not, in their shape."""
        found = x
        for k, a in enumerate(self.matrices):
            if a is None:
                continue
            if k + 1 == len(self.shape):
                found = found.reshape(-1, len(a)) @ a.mT
            else:
                found = a @ found.reshape(-1, len(a), math.prod(self.shape[k + 1 :]))
        return found.reshape(x.shape)

    def of_factors(self, deltas: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the transpose's product with ``δ aᵀ``, if it is of matrices."""
        left, right = (None if a is None else a.to(deltas.dtype) for a in self.matrices)
        deltas = deltas if left is None else deltas @ left
        return deltas, inputs if right is None else inputs @ right

    def bound(self) -> float:
        """Return a number that the spectral norm is not above."""
        each = ((a.abs().sum(0).amax() * a.abs().sum(1).amax()).sqrt() for a in self.tensors)
        return math.prod(map(float, each))

    @property
    def sizes(self) -> Sides:
        """The map with the magnitudes of its elements: what it makes of bounds is a bound."""
        return Sides(self.shape, tuple(None if a is None else a.abs() for a in self.matrices))
