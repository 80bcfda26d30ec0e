r"""Gradients that are sums of outer products: Linear layers, and convolutions seen as such.

For ``y = a Wᵀ`` with rows (tokens) τ, example i's gradient is ``g_i = Σ_τ δ_iτ a_iτᵀ`` with
``δ = ∂ℓ/∂y``, so inner products need no weight gradient:

    ⟨g_i, g_j⟩ = Σ_{τ,υ} (a_iτ · a_jυ)(δ_iτ · δ_jυ)

Source: Goodfellow, "Efficient Per-Example Gradient Computations" (arXiv 1510.01799); with
sequences, Li et al., "Large Language Models Can Be Strong Differentially Private Learners"
(arXiv 2110.05679), there called ghost clipping.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms.cuts import LARGE, add_product, blocks, product
from replay.gradients.forms.form import Form
from replay.vectors.blocks import double
from replay.vectors.workspace import room, workspace

_FORMED = 1 << 23  # elements of gradients of both sides that are formed at once


@dataclass(frozen=True)
class OuterProducts(Form):
    """Gradients of rows ``start:start+p`` of a parameter ``(R, d)``.

    >>> g = OuterProducts(torch.arange(6.0).view(2, 1, 3), torch.ones(2, 1, 4), 0, 4)
    >>> torch.equal(g.inner(g), (g.dense(slice(0, 4)) @ g.dense(slice(0, 4)).T).double())
    True

    Attributes:
        inputs: ``a``, ``(n, T, d)``.
        deltas: ``δ``, ``(n, T, p)``.
        start: The first row.
        total: R.
    """

    inputs: Tensor
    deltas: Tensor
    start: int
    total: int

    @property
    def count(self) -> int:
        """N."""
        return self.inputs.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, d)``."""
        return self.total, self.inputs.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        """Both factors."""
        return [self.inputs, self.deltas]

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Both, if each gradient is one outer product of all rows."""
        if self.inputs.shape[1] != 1 or self.deltas.shape[2] != self.total:
            return None
        return self.deltas[:, 0], self.inputs[:, 0]

    @property
    def alike(self) -> Hashable:
        """Which rows they are of."""
        return self.start, self.deltas.shape[2]

    def joined(self, others: Sequence[OuterProducts]) -> OuterProducts:
        """Put the outer products of others beside these."""
        inputs = torch.cat([one.inputs for one in (self, *others)], 1)
        deltas = torch.cat([one.deltas for one in (self, *others)], 1)
        return OuterProducts(inputs, deltas, self.start, self.total)

    def select(self, examples: Tensor | slice) -> OuterProducts:
        """Return some examples' factors."""
        return OuterProducts(self.inputs[examples], self.deltas[examples], self.start, self.total)

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient, in a workspace if a role is given."""
        n, tokens, d = self.inputs.shape
        p = self.deltas.shape[2]
        low, high = (min(max(k - self.start, 0), p) for k in (rows.start, rows.stop))
        deltas = self.deltas[:, :, low:high]
        shape = (n, high - low, d)
        out = None if role is None else workspace(role, deltas, math.prod(shape)).view(shape)
        multiply = torch.mul if tokens == 1 else torch.bmm
        found = multiply(deltas.mT, self.inputs, out=out)
        if high - low < rows.stop - rows.start:
            whole = found.new_zeros(n, rows.stop - rows.start, d)
            at = self.start + low - rows.start
            whole[:, at : at + high - low] = found
            found = whole
        return found.flatten(1)

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        deltas, inputs = self.deltas.flatten(0, 1), self.inputs.flatten(0, 1)
        whole = inputs.new_zeros(self.shape)
        torch.mm(deltas.T, inputs, out=whole[self.start : self.start + deltas.shape[1]])
        return whole

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return products with a vector from either side: of each factor with its own."""
        some = left[self.start : self.start + self.deltas.shape[2]]
        return ((self.deltas @ some.to(self.deltas)) * (self.inputs @ right.to(self.inputs))).sum(1)

    def times(self, other: Form, role: str | None = None) -> Tensor | None:
        """Multiply with outer products of the same rows."""
        if not isinstance(other, OuterProducts) or self.alike != other.alike:
            return None
        return (ghost if prefers_ghost(self, other) else formed)(self, other, role)

    def with_vectors(self, vectors: Tensor) -> Tensor:
        """Return inner products with vectors, by the factors where there is one of each."""
        if self.factors is None:
            return super().with_vectors(vectors)
        (total, d), m = self.shape, len(vectors)
        products = (self.inputs[:, 0] @ vectors.view(m * total, d).T).view(self.count, m, total)
        return torch.bmm(products, self.deltas.mT)[:, :, 0].double()

    def weighted_squares(self, weight: Tensor) -> Tensor:
        """Return weighted squares, by those of the factors where there is one of each."""
        if self.factors is None:
            return super().weighted_squares(weight)
        deltas, inputs = (factor.double().square() for factor in self.factors)
        return ((deltas @ weight.view(self.shape)) * inputs).sum(1)

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction."""
        p = self.deltas.shape[2]
        moved = self.deltas @ direction[self.start : self.start + p].to(self.deltas)  # (n, T, d)
        return (moved * self.inputs).sum((1, 2), dtype=torch.float64)

    def projections(self, directions: Tensor) -> Tensor:
        """Return inner products with several directions: of each factor with its own."""
        if self.factors is None:
            return super().projections(directions)
        deltas, inputs = self.factors
        moved = torch.matmul(deltas, directions.to(deltas))  # (k, n, C)
        return moved.mul_(inputs).double().sum(2)

    def squared_norms(self, scale: float = 1.0) -> Tensor:
        """Return squared norms."""
        if self.factors is not None:
            deltas, inputs = (factor.double().square().sum(1) for factor in self.factors)
            return deltas.mul_(inputs).mul_(scale)
        n, rows, d = self.inputs.shape
        p = self.deltas.shape[2]
        result = self.inputs.new_zeros(n, dtype=torch.float64)
        if rows * rows * (d + p) > 2 * rows * d * p:
            for some, part in blocks(n, p, d):
                block = torch.bmm(self.deltas[some, :, part].mT, self.inputs[some])
                result[some] += block.square_().sum((1, 2), dtype=torch.float64)
            return result * scale
        for some, part in blocks(n, rows, rows):
            gram = self.inputs[some, part] @ self.inputs[some].mT  # (some, part, T)
            gram *= self.deltas[some, part] @ self.deltas[some].mT
            result[some] += gram.sum((1, 2), dtype=torch.float64)
        return result * scale


def prefers_ghost(left: OuterProducts, right: OuterProducts) -> bool:
    """Return whether inner products cost fewer operations without any gradient being formed.

    Where there is no room for those of one pair's rows, gradients are formed in any case.
    """
    (n, rows, d), (m, columns, _) = left.inputs.shape, right.inputs.shape
    if rows * columns > room(LARGE):
        return False
    p = left.deltas.shape[2]
    products, gradients = n * m * rows * columns, n * rows + m * columns + n * m
    return products * (d + p) < gradients * d * p


def ghost(left: OuterProducts, right: OuterProducts, role: str | None = None) -> Tensor:
    """Return ``⟨g_i, g_j⟩`` for every pair, float64 ``(n, m)``; both of the same rows."""
    n, rows, d = left.inputs.shape
    columns, p = right.inputs.shape[1], left.deltas.shape[2]
    if rows == 1 and columns == 1:
        gram = product(left.inputs[:, 0], right.inputs[:, 0])
        return double(gram.mul_(product(left.deltas[:, 0], right.deltas[:, 0], "factor")), role)
    result = left._zeros(n, right.count, role=role)
    pairs = room(LARGE) // (rows * columns)
    for k in range(0, n, max(1, pairs)):
        some = left.select(slice(k, k + max(1, pairs)))
        inputs, deltas = some.inputs.reshape(-1, d), some.deltas.reshape(-1, p)
        size = max(1, pairs // some.count)
        for j in range(0, right.count, size):
            other = right.select(slice(j, j + size))
            gram = product(inputs, other.inputs.reshape(-1, d))  # (n' T, m' U)
            gram *= product(deltas, other.deltas.reshape(-1, p), "factor")
            pairs_of = double(gram, "product in float64").view(some.count, rows, -1, columns)
            torch.sum(pairs_of, (1, 3), out=result[k : k + some.count, j : j + other.count])
    return result


def formed(left: OuterProducts, right: OuterProducts, role: str | None = None) -> Tensor:
    """Return the same by forming gradients, transposed so that the longer side is cut."""
    n, m = left.count, right.count
    result = left._zeros(n, m, role=role)
    sides = [sorted(one.tensors, key=lambda x: x.shape[2]) for one in (left, right)]
    short, long = (x.shape[2] for x in sides[0])
    step = max(1, room(_FORMED) // ((n + m) * short))
    for k in range(0, long, step):
        cut = [(narrow.mT, wide[:, :, k : k + step]) for narrow, wide in sides]
        mine, theirs = _product(*cut[0], "left"), _product(*cut[1], "right")
        add_product(result, mine, theirs)
    return result


def _product(one: Tensor, other: Tensor, role: str) -> Tensor:
    shape = (len(one), one.shape[1], other.shape[2])
    kept = workspace(role, one, math.prod(shape)).view(shape)
    return torch.bmm(one, other, out=kept).flatten(1)
