"""What reading one operation for one parameter gives, and sums that most readings need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from replay.gradients.forms.piece import Piece, Rows, for_products, matrix_shape
from replay.gradients.operations.graph import Arrival, Node, backwards, shape_of

Shape = tuple[int, ...]
Arrange = Callable[[Tensor, int], Tensor]  # a tensor and how many leading dimensions; by example


@dataclass(frozen=True)
class Use:
    """One operation, read for one parameter.

    Attributes:
        kind: What a person calls it.
        node: Where the output gradient ``δ`` is taken.
        leading: Dimensions of ``δ`` that hold examples and what is summed over.
        build: Makes the piece of ``δ``.
        shape: How ``δ`` is seen; None is as it is.
    """

    kind: str
    node: Node
    leading: int
    build: Callable[[Tensor, Arrange], Piece]
    shape: Shape | None = None


def summed_rows(arrival: Arrival, shape: Shape, operand: Shape) -> Callable[..., Rows]:
    """Return what sums contributions ``(n, rows, *rest)`` to the operand and leads them back."""
    carry = backwards(arrival.chain)

    def made(contributions: Tensor) -> Rows:
        one = contributions.shape[1] == 1  # row an example: nothing to add
        each = for_products(contributions)  # before they are added up
        found = each[:, 0] if one else each.sum(1)  # (n, *rest)
        rest = (1,) * (found.dim() - 1 - len(operand)) + operand[len(operand) - found.dim() + 1 :]
        summed = [k + 1 for k, size in enumerate(rest) if size == 1 and found.shape[k + 1] > 1]
        found = found.sum(summed, keepdim=True) if summed else found
        found = carry(found.reshape(len(found), *operand))
        return Rows(found.reshape(len(found), -1), matrix_shape(shape))

    return made


def operand_shape(arrival: Arrival, shape: Shape) -> Shape:
    """Return the shape in which a parameter arrives."""
    return shape_of(*arrival.chain[-1]) if arrival.chain else shape
