"""What ready tasks are built from: a model or a function that builds it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from torch import nn


def built(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that builds a model, of a model by copying it."""
    return partial(copy.deepcopy, model) if isinstance(model, nn.Module) else model
