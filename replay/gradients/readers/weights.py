"""Weights of linear layers and convolutions, and embedding tables."""

from __future__ import annotations

import torch
from torch import Tensor

from replay.gradients.forms.convolution import Convolved, Geometry
from replay.gradients.forms.lookup import Lookup
from replay.gradients.forms.outer import Outer
from replay.gradients.forms.piece import Piece, Rows, for_products, matrix_shape
from replay.gradients.operations.graph import Arrival, Graph, shape_of
from replay.gradients.readers.elementwise import add, elementwise
from replay.gradients.readers.use import Arrange, Shape, Use

_CASTS = ("ToCopyBackward0", "AliasBackward0")


def linear(arrival: Arrival, graph: Graph, shape: Shape) -> list[Use]:
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

    def build(delta: Tensor, arrange: Arrange) -> Piece:
        a, d = (for_products(arrange(x, 1)) for x in (inputs, delta))
        a, d = (a, d) if transposed else (d, a)
        return Outer(a, d, start, shape[0])

    return [Use("linear", node, 1, build)]


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
        elif name not in _CASTS:
            return None
    return transposed, start


def convolution(arrival: Arrival, graph: Graph, shape: Shape) -> list[Use]:
    """Read a convolution, transposed or not."""
    node = arrival.node
    casts = all(view.name() in _CASTS for view, _ in arrival.chain)
    if not casts or arrival.slot not in (1, 2):
        return []
    if arrival.slot == 2:

        def bias(delta: Tensor, arrange: Arrange) -> Piece:
            found = for_products(arrange(delta, 1)).flatten(3).sum((1, 3))
            return Rows(found, matrix_shape(shape))

        return [Use("bias", node, 1, bias)]
    inputs, transposed = node._saved_input, node._saved_transposed
    settings = (node._saved_stride, node._saved_padding, node._saved_dilation)
    stride, padding, dilation = (tuple(int(k) for k in values) for values in settings)
    geometry = Geometry(tuple(shape[2:]), stride, padding, dilation, node._saved_groups)
    if len(stride) != len(shape) - 2:
        return []

    def build(delta: Tensor, arrange: Arrange) -> Piece:
        a, d = (for_products(arrange(x, 1)) for x in (inputs, delta))
        return Convolved(d, a, geometry) if transposed else Convolved(a, d, geometry)

    return [Use("convolution", node, 1, build)]


def embedding(arrival: Arrival, graph: Graph, shape: Shape) -> list[Use]:
    """Read a lookup; where all examples share it, the sum to which it is added."""
    node = arrival.node
    casts = all(view.name() in _CASTS for view, _ in arrival.chain)
    if node._saved_scale_grad_by_freq or node._saved_sparse or not casts:
        return []
    tokens, padding = node._saved_indices, node._saved_padding_idx
    tokens = torch.where(tokens == padding, -1, tokens) if 0 <= padding < shape[0] else tokens
    leading = tokens.dim()

    def own(delta: Tensor, arrange: Arrange) -> Piece:
        return Lookup(arrange(tokens, leading), for_products(arrange(delta, leading)), shape[0])

    found = [Use("embedding", node, leading, own)]
    return found + _positions(arrival, graph, shape, tokens)


def _positions(arrival: Arrival, graph: Graph, shape: Shape, tokens: Tensor) -> list[Use]:
    """Read a lookup that all examples share where its result is added to what they do not."""
    found = []
    users = graph.users[arrival.node]
    if len(users) == 1 and users[0][0].name() in ("AddBackward0", "SubBackward0"):
        user, slot, _ = users[0]
        operand = shape_of(arrival.node)
        there = Arrival(arrival.name, (), user, slot)
        for use in add(there, graph, operand):

            def build(delta: Tensor, arrange: Arrange, use: Use = use) -> Piece:
                rows = use.build(delta, arrange).dense(slice(0, operand[0]))
                deltas = rows.view(len(rows), -1, operand[-1])
                all_tokens = tokens.flatten().expand(len(rows), -1)
                return Lookup(all_tokens, deltas, shape[0])

            found.append(Use("positions", user, use.leading, build))
    return found
