"""Gradients that are written out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms.cuts import blocks, product
from replay.gradients.forms.form import Form
from replay.vectors.blocks import double


@dataclass(frozen=True)
class Dense(Form):
    """Gradients as matrices.

    >>> g = Dense(torch.arange(12.0).view(2, 2, 3))
    >>> torch.equal(g.inner(g), torch.einsum("nrc,mrc->nm", g.matrices, g.matrices).double())
    True

    Attributes:
        matrices: ``(n, R, C)``.
    """

    matrices: Tensor

    @property
    def count(self) -> int:
        """N."""
        return self.matrices.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""
        return self.matrices.shape[1], self.matrices.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        """The matrices."""
        return [self.matrices]

    @property
    def flat(self) -> Tensor:
        """The same, ``(n, R C)``."""
        return self.matrices.flatten(1)

    @property
    def alike(self) -> Hashable:
        """All are."""
        return ()

    def joined(self, others: Sequence[Dense]) -> Dense:
        """Add others up."""
        return Dense(torch.stack([one.matrices for one in (self, *others)]).sum(0))

    def select(self, examples: Tensor | slice) -> Dense:
        """Return some examples' matrices."""
        return Dense(self.matrices[examples])

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient, a view."""
        each = self.shape[1]
        return self.flat[:, rows.start * each : rows.stop * each]

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        return self.flat.sum(0).view(self.shape)

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return products with a vector from either side."""
        return (self.matrices @ right.to(self.matrices)) @ left.to(self.matrices)

    def times(self, other: Form, role: str | None = None) -> Tensor | None:
        """Multiply with what is written out, too."""
        if not isinstance(other, Dense):
            return None
        return double(product(self.flat, other.flat), role)

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction."""
        return (self.flat @ direction.flatten().to(self.matrices)).double()

    def projections(self, directions: Tensor) -> Tensor:
        """Return inner products with several directions: one product of matrices."""
        return (directions.flatten(1).to(self.matrices) @ self.flat.T).double()

    def squared_norms(self, scale: float = 1.0) -> Tensor:
        """Return squared norms."""
        result, flat = self._zeros(self.count), self.flat
        for some, part in blocks(self.count, flat.shape[1], 1):
            result[some] += flat[some, part].double().square().sum(1)
        return result * scale


def matrices(rows: Tensor, shape: Sequence[int]) -> Dense:
    """Return rows ``(n, *shape)``, flat or not, of a parameter of some shape."""
    flat = rows.reshape(len(rows), math.prod(shape))
    return Dense(flat.view(len(rows), shape[0] if shape else 1, math.prod(shape[1:])))
