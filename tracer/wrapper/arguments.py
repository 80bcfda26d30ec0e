"""What ``TracingOptimizer`` is given: checked, and named."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from tracer.codec.delta import ENCODINGS
from tracer.errors import TracingError, shown
from tracer.hdf5.filters import has_zstd

CODED_FROM = 1_000_000  # parameters


def qualified(kind: type) -> str:
    """Return a class's full name, torch's own as users know them."""
    module = "torch.optim" if _is_torch(kind) else kind.__module__
    return f"{module}.{kind.__qualname__}"


def rule(kind: type) -> str:
    """Return the name of an update rule: exact types only, since AdamW subclasses Adam."""
    return kind.__name__ if _is_torch(kind) else qualified(kind)


def _is_torch(kind: type) -> bool:
    return getattr(torch.optim, kind.__name__, None) is kind


def check_arguments(model: Any, reduction: str, record: str) -> None:
    """Raise TracingError for invalid arguments of ``TracingOptimizer``."""
    if not isinstance(model, nn.Module):
        raise TracingError(f"model must be an nn.Module, found {type(model).__name__}.")
    if reduction not in ("mean", "sum"):
        raise TracingError(f'reduction must be "mean" or "sum", found {shown(reduction)}.')
    if record not in ("ids", "seeds", "batches"):
        raise TracingError(f'record must be "ids", "seeds" or "batches", found {shown(record)}.')


def check_numbers(**numbers: Any) -> None:
    """Raise TracingError unless each is None or a positive whole number."""
    for name, value in numbers.items():
        if value is not None and not (type(value) is int and value > 0):
            raise TracingError(f"{name} must be a positive whole number, found {shown(value)}.")


def checked_compression(compression: str | None, elements: int) -> str:
    """Return how rows are coded; by default plain below a million parameters."""
    if compression is None:
        return "delta" if elements >= CODED_FROM and has_zstd() else "none"
    if compression not in ENCODINGS:
        raise TracingError(f'compression must be "none" or "delta", found {shown(compression)}.')
    return compression


def checked_epoch(epoch: Any) -> int | None:
    """Return an epoch as a plain number."""
    try:
        number = None if epoch is None else index(epoch)
    except TypeError:
        number = -1
    if number is not None and not 0 <= number < 2**63:
        raise TracingError(f"epoch must be None or a whole number from 0 on, found {shown(epoch)}.")
    return number


def check_group(group: Any, names: Mapping[int, str]) -> None:
    """Raise TracingError if a parameter group has parameters that are not logged."""
    if not isinstance(group, dict) or "params" not in group:
        return  # an argument of another kind, or the optimizer's own error
    if not isinstance(group["params"], Tensor):
        group["params"] = list(group["params"])  # as torch does, too: it may be an iterator
    found = group["params"]
    for one in [found] if isinstance(found, Tensor) else found:
        parameter = one[1] if isinstance(one, tuple) else one  # torch takes (name, parameter), too
        if id(parameter) not in names:
            raise TracingError(
                "add_param_group got a parameter that the traced model does not have, or had not "
                "when the wrapper was made: a log's rows have one layout; make every layer first."
            )
