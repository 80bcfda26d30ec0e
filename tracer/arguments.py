"""What ``TracingOptimizer`` is given: checked, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracer.delegation import Delegating
from tracer.errors import OutputExistsError, TracingError


def check_path(path: Path, *, overwrite: bool) -> None:
    """Raise an error if a log cannot be written there."""
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"the log {path} exists; choose another path or pass overwrite=True."
        )
    if not path.absolute().parent.is_dir():
        raise TracingError(f"there is no directory {path.absolute().parent} for the log.")


def qualified(kind: type) -> str:
    """Return a class's full name, torch's own as users know them."""
    module = "torch.optim" if _is_torch(kind) else kind.__module__
    return f"{module}.{kind.__qualname__}"


def rule(kind: type) -> str:
    """Return the name of an update rule: exact types only, since AdamW subclasses Adam."""
    return kind.__name__ if _is_torch(kind) else qualified(kind)


def _is_torch(kind: type) -> bool:
    return getattr(torch.optim, kind.__name__, None) is kind


def check_arguments(
    optimizer: Any,
    model: Any,
    task: Any,
    reduction: str,
    snapshot_every: int,
    record: str,
    resume: bool,
) -> None:
    """Raise TracingError for arguments of ``TracingOptimizer`` that are of no use."""
    if isinstance(optimizer, Delegating) or not isinstance(optimizer, Optimizer):
        raise TracingError(f"expected a torch optimizer to wrap, found {type(optimizer).__name__}.")
    if not isinstance(model, nn.Module):
        raise TracingError(f"model must be an nn.Module, found {type(model).__name__}.")
    if task is not None and not (isinstance(task, str) and ":" in task):
        raise TracingError(f'task must be "package.module:name" or "file.py:name", found {task!r}.')
    if reduction not in ("mean", "sum"):
        raise TracingError(f'reduction must be "mean" or "sum", found {reduction!r}.')
    later = {
        "snapshot_every": snapshot_every != 1,
        "record": record != "ids",
        "resume": bool(resume),
    }
    for name, asked in later.items():
        if asked:
            default = {"snapshot_every": 1, "record": '"ids"', "resume": False}[name]
            raise TracingError(f"{name} other than {default} is not available in this version.")


def check_parameters(optimizer: Optimizer, names: dict[int, str]) -> None:
    """Raise TracingError for a parameter that the model does not have."""
    for k, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise TracingError(
                    f"group {k} of the optimizer holds a parameter of shape "
                    f"{tuple(parameter.shape)} that is not in the model; pass the model whose "
                    "parameters it moves."
                )
