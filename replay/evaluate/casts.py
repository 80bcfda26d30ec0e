"""To what a loss casts on its way: autocast rounds what parameters in float32 do not show."""

from __future__ import annotations

import torch
from torch import Tensor


def coarsest(losses: Tensor) -> torch.dtype | None:
    """Return the coarsest floating dtype of the operations that led to losses; None without any."""
    seen, found, ahead = set(), set[torch.dtype](), [losses.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {meta.dtype for meta in node._input_metadata}
        ahead += [before for before, _ in node.next_functions]
    kinds = [kind for kind in found if kind.is_floating_point]
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=None)
