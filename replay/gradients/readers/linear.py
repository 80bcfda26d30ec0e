"""Weights and biases of linear layers."""

from __future__ import annotations

from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.operations.graph import Arrival, Graph
from replay.gradients.operations.views import CASTS
from replay.gradients.readers.elementwise import elementwise
from replay.gradients.readers.reader import Arrange, Reader, Shape


def linear(arrival: Arrival, graph: Graph, shape: Shape) -> list[Reader]:
    """``addmm(bias, a, Wᵀ)`` and ``mm(a, Wᵀ)``, with W as it is or transposed."""
    node, is_addmm = arrival.node, arrival.node.name() == "AddmmBackward0"
    if is_addmm and (node._saved_alpha != 1 or node._saved_beta != 1):
        return []
    if is_addmm and arrival.slot == 0:
        return [elementwise("bias", arrival, shape, lambda d: d)]
    if arrival.slot != (2 if is_addmm else 1) or len(shape) != 2:
        return []
    placed = _placed(arrival, shape)
    inputs = node._saved_mat1 if is_addmm else node._saved_self
    if placed is None or inputs is None:
        return []
    transposed, start = placed

    def read(delta: Tensor, arrange: Arrange) -> Form:
        a, d = (for_products(arrange(x, 1)) for x in (inputs, delta))
        a, d = (a, d) if transposed else (d, a)
        return OuterProducts(a, d, start, shape[0])

    return [Reader("linear", node, 1, read)]


def _placed(arrival: Arrival, shape: Shape) -> tuple[bool, int] | None:
    """Return whether a matrix arrives transposed, and its first row; None for other views."""
    transposed, start = False, 0
    for node, output in arrival.chain:
        name = node.name()
        if name in ("TBackward0", "TransposeBackward0", "PermuteBackward0"):  # of a matrix
            transposed = not transposed
        elif name in ("SplitBackward0", "SplitWithSizesBackward0") and not transposed:
            if start or node._saved_dim != 0:
                return None
            start = (
                output * node._saved_split_size
                if name == "SplitBackward0"
                else sum(node._saved_split_sizes[:output])
            )
        elif name not in CASTS:
            return None
    return transposed, start
