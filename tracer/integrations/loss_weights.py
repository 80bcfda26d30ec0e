"""What each example's loss counts in the objective of transformers' Trainer.

An example's loss is the mean over its n_i items: the tokens that count, or 1 for the whole example.
The Trainer's objective is a sum over the micro-batches of a step. Its model divides by all items
of the step, N, or only by those of the micro-batch; then the Trainer may divide by the k
micro-batches. So the weights are

    c_i = n_i / N     or     c_i = s n_i / (items of the micro-batch),  s = 1 or 1 / k.

Which of these it is depends on the model's class and the version, and N is what the Trainer
counts, which is not always what the loss sums. So it is measured: the loss of the first
micro-batch is taken once more with another N, without a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracer.errors import TracingError
from tracer.unwrapping import unwrapped

_IGNORED = -100
_TOLERANCE = 1e-3  # of a loss that is taken twice: between those that are compared lies a half


@dataclass(frozen=True)
class LossWeights:
    """By what a trainer divides.

    Attributes:
        by_all: Whether the model divides by the items of the whole step.
        by_batches: Whether the Trainer divides by the number of micro-batches.
    """

    by_all: bool
    by_batches: bool

    def of(self, items: Tensor, total: Any, batches: int) -> Tensor:
        """Return ``c_i`` of one micro-batch, float64 ``(b,)``.

        Args:
            items: ``n_i``, ``(b,)``.
            total: N as the Trainer counts it; None if it does not.
            batches: k.
        """
        counts = items.detach().to("cpu", torch.float64)
        divisor = float(total) if self.by_all else max(1.0, float(counts.sum()))
        return counts / (divisor * (batches if self.by_batches else 1))


def measured(loss: Tensor, again: Callable[[Any], Tensor], total: Any, batches: int) -> LossWeights:
    """Find by what the Trainer divides, from the first micro-batch.

    Args:
        loss: What it added to the objective.
        again: Takes the model's loss once more, with another N, from the same random state.
        total: N as the Trainer counts it; None if it does not.
        batches: k.

    Raises:
        TracingError: None of the ways explains the loss.
    """
    stretch = batches + 1.5  # 1, k and this one, and their quotients, all differ
    if total is None and batches == 1:
        return LossWeights(by_all=False, by_batches=False)
    other = again(None if total is None else total * stretch)
    first, second = float(loss), float(other)
    for by_all in (True, False) if total is not None else (False,):
        for by_batches in (True, False) if batches > 1 else (False,):
            expected = second * (stretch if by_all else 1) / (batches if by_batches else 1)
            if math.isclose(first, expected, rel_tol=_TOLERANCE):
                return LossWeights(by_all, by_batches)
    if math.isnan(first):
        raise TracingError(
            "the loss of the first micro-batch is NaN, so what it is divided by is not known.\n"
            "1. See that a label of each micro-batch counts: with -100 only, a mean is 0 / 0."
        )
    raise TracingError(
        f"the loss of a micro-batch is {first:.6g} and {second:.6g} when it is taken once more "
        f"with {stretch} times the number of items, so what it is divided by is not known.\n"
        "1. Return the same loss for the same batch and random state.\n"
        "2. Scale a loss of your own linearly: by 1 / num_items_in_batch, or not by it at all."
    )


@dataclass(frozen=True)
class BatchWeights:
    """What each example counts in a loss of a micro-batch that is divided by their number.

    Attributes:
        reduction: ``"mean"`` or ``"sum"``: how the loss joins the examples' losses.
        items: Says for a batch of how many items each example's loss is the mean; None: as
            ``items_of`` does.
    """

    reduction: str
    items: Callable[[Any], Tensor] | None

    def of(self, model: nn.Module, batch: Any, count: int, batches: int) -> Tensor | None:
        """Return ``c_i`` of one micro-batch, ``(b,)``; None for equal shares of a step.

        Args:
            model: Says whether its loss shifts the labels.
            batch: What it is given.
            count: Of the examples.
            batches: k.
        """
        mean = self.reduction == "mean"
        if self.items is None and mean and batches == 1:
            counted = _counted(model, batch)
            if counted is None or bool(counted.all()):  # as usual: without making tensors
                return None
        items = items_of(model, batch, count) if self.items is None else self.items(batch)
        if mean:
            return LossWeights(by_all=False, by_batches=True).of(items, None, batches)
        return items.double() / batches


def items_of(model: nn.Module, batch: Any, count: int) -> Tensor:
    """Return how many items each example's loss is the mean of, ``(b,)``.

    Args:
        model: Says whether its loss shifts the labels.
        batch: What it is given; labels of a mapping count where they are not -100.
        count: Of the examples.
    """
    counted = _counted(model, batch)
    return torch.ones(count) if counted is None else counted.reshape(count, -1).sum(1)


def _counted(model: nn.Module, batch: Any) -> Tensor | None:
    """Return which labels of a batch count; None where each example counts once."""
    given = batch if isinstance(batch, Mapping) else {}
    known = given.get("shift_labels")
    labels = given.get("labels") if known is None else known
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim == 0:
        return None
    if labels.ndim > 1 and known is None and _shifts(model):
        labels = labels[..., 1:]
    return labels != _IGNORED


def _shifts(model: nn.Module) -> bool:
    """Return whether a model, or what a module holds of one, predicts the next token."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return False
    inner: Any = unwrapped(model)
    if hasattr(inner, "get_base_model"):  # peft's
        inner = inner.get_base_model()
    names = {type(m).__name__ for m in (inner, *inner.children())}
    return not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
