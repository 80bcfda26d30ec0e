"""Wrappers that are open at the same time: no parameter of one's model is moved by another."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.unwrapping import unwrapped
from tracer.watch.forwards import ForwardWatch

Open = tuple[Optimizer, nn.Module, Path]
_OPEN: weakref.WeakKeyDictionary[ForwardWatch, Open] = weakref.WeakKeyDictionary()


def opened(forwards: ForwardWatch, optimizer: Optimizer, model: nn.Module, path: Path) -> None:
    """Note a wrapper, which is open for as long as it watches its model."""
    _OPEN[forwards] = optimizer, unwrapped(model), path


def check_apart(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Raise TracingError if another wrapper is open that moves parameters of the same model.

    Args:
        optimizer: To be wrapped.
        names: Of its model's parameters, by ``id``.
    """
    for forwards, (other, theirs, path) in list(_OPEN.items()):
        if not forwards.is_on:
            continue
        shared = _moved(optimizer) & {id(p) for p in theirs.parameters()}
        shared |= _moved(other) & names.keys()
        for key in [key for key in names if key in shared][:1]:
            raise TracingError(
                f"{names[key]!r} is in two wrappers' models: this one's, and that of the "
                f"{type(other).__name__} whose steps go to {path}. Each log would miss how the "
                "other one moves it.\n"
                "  1. Give one wrapper all optimizers: TracingOptimizer([a, b], model, log), or "
                '{"a": a, "b": b} if they take turns;\n'
                "  2. if the other run is over, close it first: optimizer.close()."
            )


def _moved(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
