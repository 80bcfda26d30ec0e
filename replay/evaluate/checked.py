"""Checks what a task's losses and their gradients are: of the right shape, and finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from replay.gradients.forms.form import all_finite, is_finite
from replay.gradients.forms.per_example import PerExample
from tracer.errors import NonFiniteError, TaskError, shown
from tracer.records import ID


def checked_losses(losses: Any, ids: Sequence[ID], *, function: str, where: str) -> Tensor:
    """Return what a loss function gave if it is one finite loss an example.

    Args:
        losses: What it returned.
        ids: IDs of the batch, length ``b``.
        function: ``"task.loss"`` or ``"task.measure"``.
        where: ``"step 3"``, for the message.

    Raises:
        TaskError: It is not a tensor of shape ``(b,)``.
        NonFiniteError: A loss is NaN or infinite; names its example.
    """
    b = len(ids)
    advice = "return each example's own loss, for instance cross_entropy(..., reduction='none')"
    if not isinstance(losses, Tensor):
        raise TaskError(
            f"{where}: {function} must return a tensor of shape ({b},), found "
            f"{type(losses).__name__}; {advice}."
        )
    if losses.dim() == 0:
        raise _one_number(function, b, where)
    if losses.shape != (b,):
        raise TaskError(
            f"{where}: {function} returned shape {tuple(losses.shape)} for a batch of {b} IDs; "
            f"expected ({b},): one ID and one loss for each example; {advice}."
        )
    finite = torch.isfinite(losses.detach())
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"{where}: {function} of example {shown(ids[first])} is {losses[first].item()}; "
            "influence is undefined there. Did the run itself diverge?"
        )
    return losses


def _one_number(function: str, b: int, where: str) -> TaskError:
    remedies = [
        "Take the reduction out of it, cross_entropy(..., reduction='none'): the training loop "
        f"takes the mean, {function}(model, batch).mean()",
        "of what has several losses for an example (tokens, pixels), take the mean over all "
        "dimensions but the first: losses.flatten(1).mean(1)",
    ]
    if b == 1:
        remedies.append("where it squeezes, leave the first dimension: squeeze(-1), not squeeze()")
    numbered = ";\n".join(f"  {k}. {remedy}" for k, remedy in enumerate(remedies, start=1))
    return TaskError(
        f"{where}: {function} returned one number for {b} example{'s' * (b > 1)}, a mean or a sum, "
        f"and has to return the loss of each, of shape ({b},).\n{numbered}."
    )


def require_finite(found: PerExample, ids: Sequence[ID], where: str) -> None:
    """Raise NonFiniteError, naming the example, if a batch's gradient is NaN or infinite."""
    if all_finite(found.total.values()):
        return
    bad = [name for name, gradient in found.total.items() if not is_finite(gradient)]
    for i, identity in enumerate(ids):
        if _has_nonfinite_row(found, i):
            raise NonFiniteError(
                f"{where}: the gradient of training example {shown(identity)} is NaN or infinite "
                f"(in {bad[0]!r}); influence is undefined there."
            )
    raise NonFiniteError(
        f"{where}: the batch gradient of {bad[0]!r} is NaN or infinite; batch {shown(list(ids))}."
    )


def _has_nonfinite_row(found: PerExample, i: int) -> bool:
    chosen = torch.tensor([i], device=found.losses.device)
    if not all(bool(found.rows(name, chosen).isfinite().all()) for name in found.forms):
        return True
    for rows, gradients in found.blocks():
        if rows.start <= i < rows.stop:
            return any(not g[i - rows.start].isfinite().all() for g in gradients.values())
    return False


@contextmanager
def in_dtype(dtype: torch.dtype | None, function: str, where: str) -> Iterator[None]:
    """Evaluate a task's function, by a model in another dtype than its own unless that is None.

    Raises:
        TaskError: It failed, as what has a dtype of its own does; says what to do.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if dtype is None:
            raise
        raise TaskError(
            f"{where}: evaluating {function} in float64 failed ({error}). If the model "
            'cannot run in float64, take its own dtype: values="model" (--values model). Noise '
            "that it draws has the dtype of its input by torch.randn(..., dtype=x.dtype)."
        ) from error
