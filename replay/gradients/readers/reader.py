"""A reader of one operation for one parameter, and the sums that most of them need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from replay.gradients.forms.dense import Dense, matrices
from replay.gradients.forms.form import Form, for_products
from replay.gradients.operations.graph import Arrival
from replay.gradients.operations.views import Node, backwards, shape_of

Shape = tuple[int, ...]
Arrange = Callable[[Tensor, int], Tensor]  # a tensor and how many leading dimensions; by example


@dataclass(frozen=True)
class Reader:
    """How one operation is read for one parameter.

    Attributes:
        kind: What a person calls it.
        node: Where the output gradient ``δ`` is taken.
        leading: Dimensions of ``δ`` that hold examples and what is summed over.
        read: Makes the parameter's gradients of ``δ``.
        shape: How ``δ`` is seen; None is as it is.
    """

    kind: str
    node: Node
    leading: int
    read: Callable[[Tensor, Arrange], Form]
    shape: Shape | None = None


def summed_rows(arrival: Arrival, shape: Shape, operand: Shape) -> Callable[..., Dense]:
    """Return what sums contributions ``(n, rows, *rest)`` to the operand and leads them back."""
    carry = backwards(arrival.chain)

    def made(contributions: Tensor) -> Dense:
        one = contributions.shape[1] == 1  # row an example: nothing to add
        each = for_products(contributions)  # before they are added up
        found = each[:, 0] if one else each.sum(1)  # (n, *rest)
        rest = (1,) * (found.dim() - 1 - len(operand)) + operand[len(operand) - found.dim() + 1 :]
        summed = [k + 1 for k, size in enumerate(rest) if size == 1 and found.shape[k + 1] > 1]
        found = found.sum(summed, keepdim=True) if summed else found
        return matrices(carry(found.reshape(len(found), *operand)), shape)

    return made


def operand_shape(arrival: Arrival, shape: Shape) -> Shape:
    """Return the shape in which a parameter arrives."""
    return shape_of(*arrival.chain[-1]) if arrival.chain else shape
