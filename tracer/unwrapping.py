"""The module that owns the parameters, inside what compiles it or spreads it over devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def wrappers(model: Any) -> Iterator[Any]:
    """Yield a model, and what it wraps: the last one owns the parameters."""
    while True:
        yield model
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return
        model = inner


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and data-parallel wrappers."""
    *_, inner = wrappers(model)
    assert isinstance(inner, nn.Module)
    return inner
