"""Losses of transformers' models: of a batch's tokens, and of its sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replay.tasks.targets import cross_entropies, label_losses, squared_errors
from tracer.errors import TaskError, shown

_OF_NO_CLASS = {"multi_label_classification": label_losses, "regression": squared_errors}
IGNORED = -100  # the label of a token that does not count


@dataclass(frozen=True)
class TokenLosses:
    """Returns of each sequence the mean over its tokens that count, 0 if none does.

    Attributes:
        shifts: Whether the scores at a place are of the next token.
        autocast: Of the forward pass.
        label_smoothing: Share of a token's label that all tokens have alike.
    """

    shifts: bool
    autocast: torch.dtype | None
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of each sequence, ``(b,)``."""
        each, counted = self.each(model, batch)
        return each.sum(1) / counted.sum(1).clamp(min=1)

    def each(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of each token, 0 where it does not count, and which do, ``(b, l)``."""
        logits, labels = _run(model, batch, self.autocast)
        if self.shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        each = F.cross_entropy(
            logits.transpose(1, 2),
            labels,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return each, labels != IGNORED

    def counted(self, labels: Tensor) -> list[int]:
        """Return the places of the tokens of one sequence that count, of labels ``(l,)``."""
        places: list[int] = (labels != IGNORED).nonzero()[:, 0].tolist()
        return [place for place in places if place or not self.shifts]


@dataclass(frozen=True)
class ClassLosses:
    """Returns the loss that transformers' classifiers have for a sequence's labels.

    The cross-entropy of a class; for several labels of one sequence the mean of their binary
    cross-entropies; for numbers the mean squared error. The model's ``config.problem_type`` says
    which; without it one score means numbers, and labels that are no whole numbers several labels.

    Attributes:
        autocast: Of the forward pass.
        label_smoothing: Share of a class's label that all classes have alike.
    """

    autocast: torch.dtype | None
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of each sequence, ``(b,)``."""
        logits, labels = _run(model, batch, self.autocast)
        known = getattr(getattr(model, "config", None), "problem_type", None)
        if known is None and logits.shape[-1] == 1:
            known = "regression"
        if known is None and labels.is_floating_point():
            known = "multi_label_classification"
        if known not in _OF_NO_CLASS:
            return cross_entropies(logits, labels, self.label_smoothing)
        if self.label_smoothing:
            raise TaskError(
                f"label_smoothing= smooths classes, and {known} has none: leave it out."
            )
        return _OF_NO_CLASS[known](logits, labels)


def _run(model: nn.Module, batch: Any, autocast: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Return logits, at least float32, and labels."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise TaskError(
            f'task.collate must return a mapping with "labels", found {_of(batch)}.\n'
            "1. Pass collate=, the trainer's collator, which makes labels.\n"
            "2. If the examples have labels of their own, name them in columns=."
        )
    given = {name: value for name, value in batch.items() if name != "labels"}
    kind = next(p for p in model.parameters() if p.is_floating_point())
    how: Any = contextlib.nullcontext()
    if autocast is not None and kind.dtype != torch.float64:
        how = torch.autocast(kind.device.type, autocast)
    with how:
        found = model(**given)
    logits: Tensor = found.logits if hasattr(found, "logits") else found[0]
    return (logits if logits.dtype == torch.float64 else logits.float()), batch["labels"]


def _of(batch: Any) -> str:
    return f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else shown(batch)
