"""Vectors of the model's size in float64, a block of elements at a time.

New pages and memory cost more than the arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from replay.vectors.workspace import workspace

SMALL = 1 << 14  # elements: below, looking for kept memory takes longer than new memory
_BLOCK = 1 << 17  # elements: a few float64 temporaries of this size stay near the processor

Parts = tuple[Tensor | None, Tensor | None, Tensor | None]  # data, regulariser, history


def total(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Return the sum of parts; None is zero."""
    found = [part for part in parts if part is not None]
    return (found[0] if len(found) == 1 else torch.stack(found).sum(0)) if found else None


def block_size(like: Tensor) -> int:
    """Return how many elements a block has; all where caches do not decide."""
    return _BLOCK if like.device.type == "cpu" else max(1, like.numel())


def cut(vector: Tensor | None, size: int) -> Iterable[Any]:
    """Return a tensor's elements in flat blocks; for ever None if there is none."""
    if vector is None:
        return itertools.repeat(None)
    flat = vector.reshape(-1)
    return (flat,) if flat.numel() <= size else torch.split(flat, size)


def double(vector: Tensor, role: str | None = None) -> Tensor:
    """Return a copy in float64; with a role, until the next call for it."""
    if role is None or vector.numel() < SMALL:
        return vector.to(torch.float64, copy=True)
    return _kept(vector, vector.shape, role).copy_(vector)


def zeros(like: Tensor, sizes: Sequence[int], role: str | None = None) -> Tensor:
    """Return float64 zeros; with a role, until the next call for it."""
    if role is None or math.prod(sizes) < SMALL:
        return like.new_zeros(sizes, dtype=torch.float64)
    return _kept(like, sizes, role).zero_()


def _kept(like: Tensor, sizes: Sequence[int], role: str) -> Tensor:
    double = torch.empty(0, dtype=torch.float64, device=like.device)
    return workspace(role, double, math.prod(sizes)).view(sizes)
