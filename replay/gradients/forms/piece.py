r"""What per-example gradients of one parameter are kept as: the protocol, and plain rows.

A parameter is a matrix here, ``(R, C)``: its first dimension and all others. What a family of
operations gives is a ``Piece``; a parameter that is used several times has several, and its
gradients are their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from replay.vectors.workspace import room

BLOCK = 1 << 22  # elements of a temporary that is used over and over, if there is room
LARGE = 1 << 25  # elements of any other temporary


class Piece(Protocol):
    """Gradients of n examples of one ``(R, C)`` parameter, from one operation (or several)."""

    @property
    def count(self) -> int:
        """The number of examples, n."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""

    @property
    def tensors(self) -> list[Tensor]:
        """What it stores."""

    def select(self, examples: Tensor | slice) -> Piece:
        """Return some examples' gradients."""

    def dense(self, rows: slice) -> Tensor:
        """Return some rows of each gradient, ``(n, r C)``."""

    def summed(self) -> Tensor:
        """Return the sum of all gradients, ``(R, C)``."""

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a ``(R, C)`` direction, float64 ``(n,)``."""

    def squared_norms(self) -> Tensor:
        """Return ``‖g_i‖²``, float64 ``(n,)``."""


@dataclass(frozen=True)
class Rows:
    """Gradients as plain rows.

    Attributes:
        rows: ``(n, R C)``.
        shape: ``(R, C)``.
    """

    rows: Tensor
    shape: tuple[int, int]

    @property
    def count(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def tensors(self) -> list[Tensor]:
        """The rows."""
        return [self.rows]

    def select(self, examples: Tensor | slice) -> Rows:
        """Return some examples' rows."""
        return Rows(self.rows[examples], self.shape)

    def dense(self, rows: slice) -> Tensor:
        """Return some rows of each gradient."""
        each = self.shape[1]
        return self.rows[:, rows.start * each : rows.stop * each]

    def summed(self) -> Tensor:
        """Return the sum of all gradients."""
        return self.rows.sum(0).view(self.shape)

    def project(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction."""
        return (self.rows @ direction.flatten().to(self.rows)).double()

    def squared_norms(self) -> Tensor:
        """Return squared norms."""
        result = self.rows.new_zeros(self.count, dtype=torch.float64)
        for some, part in blocks(self.count, self.rows.shape[1], 1):
            result[some] += self.rows[some, part].double().square().sum(1)
        return result


def kept(pieces: dict[str, list[Piece]], overwritten: frozenset[int]) -> dict[str, list[Piece]]:
    """Return pieces with tensors of their own where theirs lie in storages that change later.

    A tensor that was written in place may lie in a workspace of the model's.
    """
    return {name: [_apart(piece, overwritten) for piece in some] for name, some in pieces.items()}


def _apart(piece: Any, overwritten: frozenset[int]) -> Any:
    shared = {
        name: tensor.clone()
        for name, tensor in vars(piece).items()
        if isinstance(tensor, Tensor)
        and (tensor._version or tensor.untyped_storage().data_ptr() in overwritten)
    }
    return replace(piece, **shared) if shared else piece


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are numbers; a finite sum, which is cheaper to see, says so."""
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def for_products(tensor: Tensor) -> Tensor:
    """Half-precision gradients are multiplied in float32."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape ``(R, C)`` in which a parameter is seen."""
    if not shape:
        return 1, 1
    return shape[0], math.prod(shape[1:])


def blocks(count: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Cut matrices so that a temporary has room: several whole ones, or rows of one at a time."""
    fitting = max(1, room(BLOCK) // max(1, columns))
    some = max(1, fitting // max(1, rows))
    for k in range(0, count, some):
        for start in range(0, rows, fitting):
            yield slice(k, k + some), slice(start, start + fitting)


def blocks_of_rows(shape: tuple[int, int], count: int, size: int = BLOCK) -> list[slice]:
    """Cut a parameter's rows so that a block of ``count`` gradients has about ``size`` elements."""
    rows, columns = shape
    step = max(1, room(size) // max(1, count * columns))
    return [slice(k, min(k + step, rows)) for k in range(0, rows, step)]
