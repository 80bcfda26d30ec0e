"""How gradients are cut so that temporaries have room, and their products in kept memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from replay.vectors.blocks import SMALL, double
from replay.vectors.workspace import room, workspace

BLOCK = 1 << 22  # elements of a temporary that is used over and over, if there is room
LARGE = 1 << 25  # elements of any other temporary


def blocks(count: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``count`` matrices: several whole ones at a time, or rows of one."""
    fitting = max(1, room(BLOCK) // max(1, columns))
    some = max(1, fitting // max(1, rows))
    for k in range(0, count, some):
        for start in range(0, rows, fitting):
            yield slice(k, k + some), slice(start, start + fitting)


def blocks_of_rows(shape: tuple[int, int], count: int) -> list[slice]:
    """Cut a parameter's rows so that ``count`` gradients of one block have ``BLOCK`` elements."""
    rows, columns = shape
    step = max(1, room(BLOCK) // max(1, count * columns))
    return [slice(k, min(k + step, rows)) for k in range(0, rows, step)]


def product(left: Tensor, right: Tensor, role: str = "product") -> Tensor:
    """Return ``left rightᵀ``; a large one in a workspace, until the next call for its role."""
    size = len(left), len(right)
    if size[0] * size[1] < SMALL:
        return left @ right.T
    return torch.mm(left, right.T, out=workspace(role, left, size[0] * size[1]).view(size))


def add_product(result: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left rightᵀ`` to a float64 table; torch would convert it to a new tensor."""
    result += double(product(left, right), "product in float64")
