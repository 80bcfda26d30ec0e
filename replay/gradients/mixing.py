r"""Operations that may take rows of one example to another where data say so.

A layout that is proven on one pass holds for every later one of the same graph, unless what
examples do to each other depends on data: rows sorted by length, experts chosen by a router, masks
between sequences that are packed together. A first batch that happens to be in order would prove
too much. A graph in which nothing of that kind is found is *steady*; any other is proven at every
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tracer.errors import GradientError

Node = Any
_FEW = 64  # nodes between a weight as it is used and its parameters
_LAST = (1 << 64) - 1  # dimension -1, as torch keeps it


def is_steady(node: Node, name: str, n: int) -> bool:
    """Return whether a node keeps rows of n examples apart, or mixes them, whatever data say.

    Args:
        node: Of the autograd graph.
        name: Its name.
        n: The number of examples.

    Raises:
        GradientError: It hides the parameters below it.
    """
    root, _, number = name.partition("Backward")
    if not number:  # of torch's engine, or somebody's own autograd function
        if root == "CheckpointFunction":
            raise GradientError(
                "the model uses torch.utils.checkpoint with use_reentrant=True, which hides its "
                "parameters from torch.autograd.grad; give it use_reentrant=False."
            )
        return root.endswith("AccumulateGrad")
    check = _CHECKS.get(root)
    return check is None or n < 2 or check(node, n)


def _never(node: Node, n: int) -> bool:
    return False


def _last_dimension(node: Node, n: int) -> bool:
    """Whether rows are told apart by the first dimension, and elements taken along the last."""
    shape = node._input_metadata[0].shape
    return len(shape) > 1 and shape[0] % n == 0 and node._saved_dim in (len(shape) - 1, _LAST)


def _own_rows(node: Node, n: int) -> bool:
    """Whether ``x[index]`` takes nothing from other examples: ``x[:, k]``, ``x[arange(n), k]``.

    In ``x[:, k]`` examples may lie in the second dimension: not if it cannot hold them.
    """
    indices, sizes = node._saved_indices, node._saved_self_sym_sizes
    first = indices[0]
    if first is None:
        taken = [size for size, index in zip(sizes, indices, strict=False) if index is not None]
        return all(size % n for size in taken)
    if first.dtype in (torch.bool, torch.uint8) or len(first) != n or first.numel() != n:
        return False
    return torch.equal(first.flatten(), torch.arange(n, device=first.device))


def _by_weight(slot: int) -> Callable[[Node, int], bool]:
    """Whether a product's operand is a weight, so that rows of the other one stay apart."""

    def check(node: Node, n: int) -> bool:
        weight = node.next_functions[slot][0]
        if weight is None:  # frozen, or any constant
            return bool(node._input_metadata[0].shape[0] % n == 0)
        return _of_parameters(weight)

    return check


def _batched(node: Node, n: int) -> bool:
    """Whether the batch dimension of products of matrices can be that of the examples."""
    return bool(node._input_metadata[0].shape[0] % n == 0)


def _of_parameters(node: Node) -> bool:
    """Return whether nothing but parameters leads to a node."""
    waiting, seen = [node], {node}
    while waiting:
        one = waiting.pop()
        if hasattr(one, "variable"):
            continue
        children = [child for child, _ in one.next_functions]
        root = one.name().partition("Backward")[0]
        if None in children or not children or len(seen) > _FEW:
            return False
        if root in _CHECKS and root not in _PRODUCTS:  # data come in as indices
            return False
        waiting += [child for child in children if child not in seen]
        seen.update(children)
    return True


_PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "Linear")
_ATTENTION = ("FlashAttention", "FlashAttentionForCpu", "EfficientAttention", "CudnnAttention")
_BY_DATA = (
    *("IndexAdd", "IndexCopy", "IndexFill", "IndexPut", "IndexPutImpl", "IndexReduce"),
    *("UnsafeIndex", "UnsafeIndexPut", "UnsafeMaskedIndex", "UnsafeMaskedIndexPutAccumulate"),
    *("Kthvalue", "Median", "Nanmedian", "Mode", "Cummax", "Cummin", "Put", "Take"),
    *("Unique", "Unique2", "UniqueConsecutive", "UniqueDim", "UniqueDimConsecutive"),
    *("MaskedSelect", "MaskedScatter", "Scatter", "ScatterAdd", "ScatterReduce", "SegmentReduce"),
    *("PackPaddedSequence", "NestedFromPadded", "NestedTensorFromMask", "NestedViewFromJagged"),
    *("Addbmm", "Addr", "Dot", "Vdot", "GroupedMm", "ForeachMm", "SparseAddmm", "SparseMask"),
    *("SparseMmReduceImpl", "SparseSampledAddmm", "SparseSparseMatmul", "LinalgSolveEx"),
    *("LinalgSolveTriangular", "LinalgLuSolve", "LinalgLstsq", "CholeskySolve"),
)
_CHECKS: dict[str, Callable[[Node, int], bool]] = {
    **dict.fromkeys(("Mm", "Mv", "Linear", "MkldnnLinear", "Convolution"), _by_weight(1)),
    **dict.fromkeys(("Addmm", "Addmv"), _by_weight(2)),
    "Embedding": _by_weight(0),
    **dict.fromkeys(("Bmm", "Baddbmm"), _batched),
    **{f"ScaledDotProduct{kind}": _batched for kind in _ATTENTION},
    "Index": _own_rows,
    **dict.fromkeys(("Gather", "IndexSelect", "Sort", "Topk"), _last_dimension),
    **dict.fromkeys(_BY_DATA, _never),
}

ATTRIBUTES = {  # that say what a node does to rows: another value is another graph
    **dict.fromkeys(
        (f"{kind}BatchNormBackward0" for kind in ("Native", "Cudnn", "Miopen")),
        ("_saved_training",),
    ),
    "SelectBackward0": ("_saved_dim", "_saved_index"),
    "SliceBackward0": ("_saved_dim", "_saved_start", "_saved_step"),
    "RollBackward0": ("_saved_dims", "_saved_shifts"),
    "FlipBackward0": ("_saved_dims",),
    "AsStridedBackward0": ("_saved_size", "_saved_stride", "_saved_storage_offset"),
}
