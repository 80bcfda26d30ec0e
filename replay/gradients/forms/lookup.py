r"""Gradients of an embedding table: each token's ``δ`` is added to its own row.

Only rows that an example holds are not zero, so products of two sides need the rows that both
hold, and no more.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms.cuts import BLOCK, add_product, blocks
from replay.gradients.forms.form import Form
from replay.vectors.workspace import room, workspace


@dataclass(frozen=True)
class Lookup(Form):
    """Gradients of a table ``(V, d)``.

    >>> g = Lookup(torch.tensor([[0, 2, 0], [2, 4, -1]]), torch.ones(2, 3, 2), 5)
    >>> torch.equal(g.inner(g), (g.dense(slice(0, 5)) @ g.dense(slice(0, 5)).T).double())
    True

    Attributes:
        tokens: ``(n, T)``; −1 is a token without gradient (padding).
        deltas: ``(n, T, d)``.
        total: V.
    """

    tokens: Tensor
    deltas: Tensor
    total: int

    @property
    def count(self) -> int:
        """N."""
        return self.tokens.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(V, d)``."""
        return self.total, self.deltas.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        """Tokens and their gradients."""
        return [self.tokens, self.deltas]

    @property
    def alike(self) -> Hashable:
        """All are."""
        return ()

    def joined(self, others: Sequence[Lookup]) -> Lookup:
        """Put the tokens of others beside these."""
        tokens = torch.cat([one.tokens for one in (self, *others)], 1)
        return Lookup(tokens, torch.cat([one.deltas for one in (self, *others)], 1), self.total)

    def select(self, examples: Tensor | slice) -> Lookup:
        """Return some examples' tokens."""
        return Lookup(self.tokens[examples], self.deltas[examples], self.total)

    def dense(self, rows: slice, role: str | None = None) -> Tensor:
        """Return some rows of each gradient."""
        places = self.tokens - rows.start
        inside = (places >= 0) & (places < rows.stop - rows.start) & (self.tokens >= 0)
        return self._added(torch.where(inside, places, -1), rows.stop - rows.start)

    def held(self) -> Tensor:
        """Return the tokens that any example holds, ascending."""
        found: Tensor = torch.unique(self.tokens)
        return found[found >= 0]

    def compact(self, chosen: Tensor, role: str) -> Tensor:
        """Return the rows of some tokens (ascending) of each gradient, ``(n, len(chosen) d)``.

        The next call for the same role may overwrite them.
        """
        places = torch.searchsorted(chosen, self.tokens.contiguous())
        places = places.clamp_max(max(0, len(chosen) - 1))
        places = torch.where(chosen[places] == self.tokens, places, -1)
        return self._added(places, len(chosen), role)

    def _added(self, places: Tensor, width: int, role: str | None = None) -> Tensor:
        """Add each token's gradient up at its place; −1 is nowhere."""
        n, _, d = self.deltas.shape
        size = n * (width + 1) * d
        kept = self.deltas.new_empty(size) if role is None else workspace(role, self.deltas, size)
        one_more = kept.zero_().view(-1, d)
        offsets = torch.arange(n, device=places.device)[:, None] * (width + 1)
        index = torch.where(places < 0, width, places) + offsets
        one_more.index_add_(0, index.flatten(), self.deltas.flatten(0, 1))
        return one_more.view(n, width + 1, d)[:, :width].flatten(1)

    def times(self, other: Form, role: str | None = None) -> Tensor | None:
        """Multiply the rows that both sides hold."""
        return _products(self, other, role) if isinstance(other, Lookup) else None

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        whole = self.deltas.new_zeros(self.total + 1, self.deltas.shape[2])
        index = torch.where(self.tokens < 0, self.total, self.tokens).flatten()
        return whole.index_add_(0, index, self.deltas.flatten(0, 1))[: self.total]

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """Return products with a vector from either side."""
        factors = left.to(self.deltas)[self.tokens.clamp_min(0)] * (self.tokens >= 0)
        return (factors * (self.deltas @ right.to(self.deltas))).sum(1)

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction."""
        rows = direction.to(self.deltas)[self.tokens.clamp_min(0)]
        rows = rows * (self.tokens >= 0)[:, :, None]
        return (rows * self.deltas).sum((1, 2), dtype=torch.float64)

    def squared_norms(self, scale: float = 1.0) -> Tensor:
        """Return squared norms: equal tokens of an example are added up first."""
        n, length, d = self.deltas.shape
        result = self.deltas.new_zeros(n, dtype=torch.float64)
        owners = torch.arange(n, device=self.tokens.device)[:, None]
        whose = torch.where(self.tokens < 0, -1, owners * self.total + self.tokens)
        for some, columns in blocks(n, d, length):
            held, places = torch.unique(whose[some], return_inverse=True)
            added = self.deltas.new_zeros(len(held), len(range(d)[columns]))
            added.index_add_(0, places.flatten(), self.deltas[some, :, columns].flatten(0, 1))
            squares = added.square().sum(1, dtype=torch.float64) * (held >= 0)
            result.index_add_(0, held.clamp_min(0) // self.total, squares)
        return result * scale


def _products(left: Lookup, right: Lookup, role: str | None) -> Tensor:
    ours, theirs = left.held(), right.held()
    tokens = ours[torch.isin(ours, theirs)]  # that both sides hold, ascending
    result = left._zeros(left.count, right.count, role=role)
    size = max(1, room(BLOCK) // max(1, (left.count + right.count) * left.deltas.shape[2]))
    for some in torch.split(tokens, size) if len(tokens) else ():
        add_product(result, left.compact(some, "left"), right.compact(some, "right"))
    return result
