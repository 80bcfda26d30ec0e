r"""Views and casts between a parameter and the operation that uses it, and the way back.

A gradient of a view is led back to the parameter by the view's adjoint, for all examples at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from replay.gradients.operations.dimensions import signed

Node = Any  # torch.autograd.graph.Node, with the fields that torch documents as saved tensors
Adjoint = Callable[[Tensor], Tensor]
CASTS = ("ToCopyBackward0", "AliasBackward0")


def shape_of(node: Node, output: int = 0) -> tuple[int, ...]:
    """Return the shape of a node's result."""
    return tuple(node._input_metadata[output].shape)


def backwards(chain: tuple[tuple[Node, int], ...]) -> Adjoint:
    """Return what carries rows ``(n, *shape)`` from the end of a chain to its parameter."""
    steps = [VIEWS[node.name()](node, output) for node, output in chain]

    def carry(rows: Tensor) -> Tensor:
        for step in reversed(steps):
            rows = step(rows)
        return rows

    return carry


def _same(node: Node, output: int) -> Adjoint:
    return lambda rows: rows


def _reshape(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    return lambda rows: rows.reshape(len(rows), *sizes)


def _unsqueeze(node: Node, output: int) -> Adjoint:
    sizes = list(shape_of(node))
    sizes.pop(signed(node._saved_dim))
    return lambda rows: rows.reshape(len(rows), *sizes)


def _t(node: Node, output: int) -> Adjoint:
    return lambda rows: rows.mT if rows.dim() == 3 else rows


def _transpose(node: Node, output: int) -> Adjoint:
    first, second = (signed(d) for d in (node._saved_dim0, node._saved_dim1))
    rank = len(shape_of(node))
    return lambda rows: rows.transpose(first % rank + 1, second % rank + 1)


def _permute(node: Node, output: int) -> Adjoint:
    dims = [signed(d) % len(shape_of(node)) for d in node._saved_dims]
    back = [dims.index(k) + 1 for k in range(len(dims))]
    return lambda rows: rows.permute(0, *back)


def _split(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    dim = signed(node._saved_dim) % len(sizes)
    if node.name() == "SplitBackward0":
        start = output * node._saved_split_size
    else:
        start = sum(node._saved_split_sizes[:output])
    return _placed(sizes, dim, slice(start, start + shape_of(node, output)[dim]))


def _slice(node: Node, output: int) -> Adjoint:
    sizes = tuple(node._saved_self_sym_sizes)
    dim = signed(node._saved_dim) % len(sizes)
    end = min(signed(node._saved_end), sizes[dim])
    return _placed(sizes, dim, slice(signed(node._saved_start), end, node._saved_step))


def _placed(sizes: tuple[int, ...], dim: int, part: slice) -> Adjoint:
    def place(rows: Tensor) -> Tensor:
        whole = rows.new_zeros(len(rows), *sizes)
        whole[(slice(None),) * (dim + 1) + (part,)] = rows
        return whole

    return place


VIEWS: dict[str, Callable[[Node, int], Adjoint]] = {
    **dict.fromkeys(CASTS, _same),
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "UnsqueezeBackward0": _unsqueeze,
    "TBackward0": _t,
    "TransposeBackward0": _transpose,
    "PermuteBackward0": _permute,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "SliceBackward0": _slice,
}
