"""Gradients of several examples at one point, in the forms that the engine finds them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from replay.gradients.forms.outer import Outer
from replay.gradients.forms.piece import Piece

Rows = dict[str, Tensor]  # per-example gradients by parameter, (n, numel) each


@dataclass(frozen=True)
class PerExample:
    """Gradients of ``c_i ℓ_i`` for n examples at one point.

    Attributes:
        losses: ``ℓ_i``, detached, ``(n,)``.
        pieces: By parameter, pieces that add up to its gradients.
        total: ``Σ c_i g_i`` by one plain backward, where it was asked for.
        complete: Parameters whose gradients were too large to store.
        blocks: Computes those anew, yields ``(rows, gradients)`` block by block; only while the
            model is at the same point.
    """

    losses: Tensor
    pieces: dict[str, list[Piece]]
    total: dict[str, Tensor]
    complete: tuple[str, ...] = ()
    blocks: Callable[[], Iterator[tuple[slice, Rows]]] = field(default=lambda: iter(()), repr=False)

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.losses)

    @property
    def names(self) -> set[str]:
        """The parameters that the losses depend on."""
        return {*self.pieces, *self.complete}

    @property
    def nbytes(self) -> float:
        """Bytes of what is stored; infinite if some are computed anew."""
        if self.complete:
            return math.inf
        stored: dict[int, int] = {}  # inputs that layers share are there once
        for pieces in self.pieces.values():
            for tensor in (t for piece in pieces for t in piece.tensors):
                storage = tensor.untyped_storage()
                stored[storage.data_ptr()] = min(storage.nbytes(), tensor.nbytes)
        return sum(stored.values())

    def rows(self, name: str, chosen: Tensor | slice, role: str | None = None) -> Tensor:
        """Return some examples' gradients of one stored parameter, ``(n, numel)``, maybe a view.

        Args:
            name: The parameter.
            chosen: Which examples.
            role: Lets the result be in a workspace, until the next call for that role.
        """
        pieces = self.pieces[name]
        whole = slice(0, pieces[0].shape[0])
        if role is not None and len(pieces) == 1 and isinstance(pieces[0], Outer):
            return pieces[0].select(chosen).dense(whole, role)
        found = [piece.select(chosen).dense(whole) for piece in self.pieces[name]]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)
