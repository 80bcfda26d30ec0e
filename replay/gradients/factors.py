r"""Per-example gradients of a Linear weight, kept as the factors of their outer products.

For ``y = a Wᵀ`` with rows (tokens) τ, example i's gradient is ``g_i = Σ_τ δ_iτ a_iτᵀ`` with
``δ = ∂ℓ/∂y``, so inner products need no weight gradient:

    ⟨g_i, g_j⟩ = Σ_{τ,υ} (a_iτ · a_jυ)(δ_iτ · δ_jυ)

Source: Goodfellow, "Efficient Per-Example Gradient Computations" (arXiv 1510.01799); with
sequences, Li et al., "Large Language Models Can Be Strong Differentially Private Learners"
(arXiv 2110.05679), there called ghost clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 22  # elements of one temporary


@dataclass(frozen=True)
class Factors:
    """Gradients of one weight ``(p, d)`` for n examples.

    Attributes:
        inputs: ``a``, ``(n, T, d)``; a module called twice contributes along T.
        deltas: ``δ``, ``(n, T, p)``.
    """

    inputs: Tensor
    deltas: Tensor

    def select(self, columns: Tensor) -> Factors:
        """Return the factors of some examples."""
        return Factors(self.inputs[columns], self.deltas[columns])

    def total(self) -> Tensor:
        """Return the sum of the gradients over the examples, ``(p, d)``."""
        return self.deltas.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def project(self, direction: Tensor) -> Tensor:
        """Return each example's inner product with a ``(p, d)`` direction, float64 ``(n,)``."""
        moved = self.deltas @ direction  # (n, T, d)
        return (moved * self.inputs).sum((1, 2), dtype=torch.float64)

    def squared_norms(self) -> Tensor:
        """Return ``‖g_i‖²`` of each example, float64 ``(n,)``."""
        n, rows, d = self.inputs.shape
        p = self.deltas.shape[2]
        if rows * rows * (d + p) > 2 * rows * d * p:
            size = max(1, _BLOCK // (p * d))
            squares = [
                torch.bmm(deltas.mT, inputs).square().sum((1, 2), dtype=torch.float64)
                for deltas, inputs in zip(
                    torch.split(self.deltas, size), torch.split(self.inputs, size), strict=True
                )
            ]
            return torch.cat(squares) if squares else self.inputs.new_zeros(n).double()
        gram = (self.inputs @ self.inputs.mT) * (self.deltas @ self.deltas.mT)  # (n, T, T)
        return gram.sum((1, 2), dtype=torch.float64)


def inner(left: Factors, right: Factors) -> Tensor:
    """Return ``⟨g_i, g_j⟩`` for every pair, float64 ``(n, m)``."""
    n, rows, d = left.inputs.shape
    m, columns, p = right.inputs.shape[0], right.inputs.shape[1], left.deltas.shape[2]
    if rows == 1 and columns == 1:
        gram = left.inputs[:, 0] @ right.inputs[:, 0].T
        return gram.mul_(left.deltas[:, 0] @ right.deltas[:, 0].T).double()
    ghost = n * m * rows * columns * (d + p)
    materialised = (n * rows + m * columns) * d * p + n * m * d * p
    return _ghost(left, right) if ghost < materialised else _materialised(left, right)


def _ghost(left: Factors, right: Factors) -> Tensor:
    n, rows, d = left.inputs.shape
    columns, p = right.inputs.shape[1], left.deltas.shape[2]
    size = max(1, _BLOCK // (n * rows * columns))
    blocks = []
    for inputs, deltas in zip(
        torch.split(right.inputs, size), torch.split(right.deltas, size), strict=True
    ):
        gram = left.inputs.reshape(-1, d) @ inputs.reshape(-1, d).T  # (n T, m' U)
        gram *= left.deltas.reshape(-1, p) @ deltas.reshape(-1, p).T
        blocks.append(gram.view(n, rows, len(inputs), columns).sum((1, 3), dtype=torch.float64))
    return torch.cat(blocks, 1)


def _materialised(left: Factors, right: Factors) -> Tensor:
    n, m = len(left.inputs), len(right.inputs)
    d, p = left.inputs.shape[2], left.deltas.shape[2]
    result = left.inputs.new_zeros(n, m, dtype=torch.float64)
    size = max(1, _BLOCK // ((n + m) * d))
    for start in range(0, p, size):  # a block of rows of the weight at a time
        rows = slice(start, start + size)
        one = torch.bmm(left.deltas[:, :, rows].mT, left.inputs).flatten(1)
        other = torch.bmm(right.deltas[:, :, rows].mT, right.inputs).flatten(1)
        result += one @ other.T
    return result
