"""Memory for temporaries, kept from one use to the next: new pages cost as much as the products."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_kept = threading.local()
_MOST = 1 << 24  # elements kept of each kind


def workspace(role: str, like: Tensor, size: int) -> Tensor:
    """Return ``size`` uninitialised elements; the next call for the same role may give them again.

    Args:
        role: What they are for: temporaries in use at the same time have different roles.
        like: Gives dtype and device.
        size: How many.
    """
    if size > _MOST or like.device.type != "cpu":
        return torch.empty(size, dtype=like.dtype, device=like.device)
    key = (role, like.dtype)
    known: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("buffers", {})
    buffer = known.get(key)
    if buffer is None or len(buffer) < size:
        buffer = known[key] = torch.empty(size, dtype=like.dtype)
    return buffer[:size]
