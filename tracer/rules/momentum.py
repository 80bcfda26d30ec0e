"""What share of its last move an optimizer repeats."""

from __future__ import annotations

from typing import Any

import torch


def momentum_of(defaults: dict[str, Any]) -> float:
    """Return what share of its last move an update rule repeats."""
    betas = defaults.get("betas")
    value = betas[0] if isinstance(betas, (tuple, list)) else defaults.get("momentum", 0.0)
    return float(value) if isinstance(value, (int, float, torch.Tensor)) else 0.0
