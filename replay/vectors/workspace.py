"""Memory for temporaries: how large they may be, and buffers kept from one use to the next.

New pages cost as much as the products.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_kept = threading.local()
_room: ContextVar[int] = ContextVar("room", default=1 << 25)  # elements of a temporary
MOST = 1 << 23  # elements kept of each kind, if there is room


@contextmanager
def temporaries(budget: int) -> Iterator[None]:
    """Let a temporary take a 16th of a budget of bytes in float32, some of which are alive."""
    token = _room.set(max(1, budget // 64))
    try:
        yield
    finally:
        _room.reset(token)


def room(most: int) -> int:
    """Return how many elements a temporary may have that should have ``most`` of them."""
    return min(most, _room.get())


def storable(most: int) -> int:
    """Return how many bytes complete gradients may take: at most a quarter of the same budget."""
    return min(most, 16 * _room.get())


def workspace(role: str, like: Tensor, size: int) -> Tensor:
    """Return ``size`` uninitialised elements; the next call for the same role may give them again.

    Args:
        role: What they are for: temporaries in use at the same time have different roles.
        like: Gives dtype and device.
        size: How many.
    """
    if size > room(MOST) or like.device.type != "cpu":
        return torch.empty(size, dtype=like.dtype, device=like.device)
    key = (role, like.dtype)
    known: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("buffers", {})
    buffer = known.get(key)
    if buffer is None or buffer.numel() < size:
        buffer = known[key] = torch.empty(size, dtype=like.dtype, device="cpu")
    return buffer[:size]
