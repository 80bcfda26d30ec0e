"""Gradients of several examples at one point, in the forms that the engine finds them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from replay.gradients.factors import Factors

Rows = dict[str, Tensor]  # per-example gradients by parameter, (n, numel) each


@dataclass(frozen=True)
class PerExample:
    """Gradients of ``c_i ℓ_i`` for n examples at one point.

    Attributes:
        losses: ``ℓ_i``, detached, ``(n,)``.
        total: ``Σ c_i g_i`` by one plain backward; parameters that it does not reach are absent.
        factors: Hooked weights.
        biases: Their biases, ``(n, p)``.
        complete: Names of the parameters that take the complete way.
        blocks: Yields ``(rows, gradients)`` of the complete parameters, block by block.
        lazy: Whether each call of ``blocks`` computes them anew; only while the model is at
            the same point.
    """

    losses: Tensor
    total: dict[str, Tensor]
    factors: dict[str, Factors]
    biases: Rows
    complete: tuple[str, ...]
    blocks: Callable[[], Iterator[tuple[slice, Rows]]] = field(repr=False)
    lazy: bool = False

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.losses)

    @property
    def nbytes(self) -> float:
        """Bytes of what is stored; infinite if ``lazy``."""
        if self.lazy:
            return math.inf
        tensors = [t for f in self.factors.values() for t in (f.inputs, f.deltas)]
        tensors += self.biases.values()
        tensors += [t for _, rows in self.blocks() for t in rows.values()]
        return sum(t.nbytes for t in tensors)
