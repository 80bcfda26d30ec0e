"""Ready tasks for usual models: classification, regression, and language models of transformers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from replay.task import Task
from tracer.errors import TaskError, shown

_IGNORED = -100


def classification(
    model: nn.Module | Callable[[], nn.Module], train: Any, test: Any, **rest: Any
) -> Task:
    """Return a task of ``(inputs, class)`` pairs with the cross-entropy of each.

    Args:
        model: The model, or a function that builds it; its weights come from the log.
        train: Training examples by ID.
        test: Test examples by ID.
        **rest: Others of ``Task``.
    """
    return Task(_built(model), _cross_entropies, train, test, **rest)


def regression(
    model: nn.Module | Callable[[], nn.Module], train: Any, test: Any, **rest: Any
) -> Task:
    """Return a task of ``(inputs, target)`` pairs with the mean squared error of each.

    Args:
        model: The model, or a function that builds it; its weights come from the log.
        train: Training examples by ID.
        test: Test examples by ID.
        **rest: Others of ``Task``.
    """
    return Task(_built(model), _squared_errors, train, test, **rest)


def causal_lm(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    collate: Callable[[list[Any]], Any] = default_collate,
    columns: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    **rest: Any,
) -> Task:
    """Return a task whose loss is the mean over a sequence's next tokens that count.

    Those whose label is -100 do not count; a sequence without any has the loss 0.

    Args:
        model: A causal language model of transformers, or a function that builds it.
        train: Training examples by ID: mappings.
        test: Test examples by ID.
        collate: The trainer's collator; its batches are mappings with ``labels``.
        columns: What of an example the collator gets, as a Trainer removes columns; None is all.
        autocast: Of the run's forwards, such as ``torch.bfloat16``; values in float64 go without.
        **rest: Others of ``Task``.
    """
    loss = partial(_next_tokens, autocast=autocast)
    return Task(_built(model), loss, train, test, collate=_Collate(collate, columns), **rest)


def sequence_classification(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    collate: Callable[[list[Any]], Any] = default_collate,
    columns: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    **rest: Any,
) -> Task:
    """Return a task whose loss is the cross-entropy of a sequence's class.

    Args:
        model: A sequence classifier of transformers, or a function that builds it.
        train: Training examples by ID: mappings.
        test: Test examples by ID.
        collate: The trainer's collator; its batches are mappings with ``labels``.
        columns: What of an example the collator gets, as a Trainer removes columns; None is all.
        autocast: Of the run's forwards, such as ``torch.bfloat16``; values in float64 go without.
        **rest: Others of ``Task``.
    """
    loss = partial(_classes, autocast=autocast)
    return Task(_built(model), loss, train, test, collate=_Collate(collate, columns), **rest)


def _built(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that builds a model, of a model by copying it."""
    return partial(copy.deepcopy, model) if isinstance(model, nn.Module) else model


class _Collate:
    # a class, so that workers can pickle it
    def __init__(self, collate: Callable[[list[Any]], Any], columns: Sequence[str] | None) -> None:
        self._collate, self._columns = collate, columns

    def __call__(self, examples: list[Any]) -> Any:
        if self._columns is not None:
            examples = [{k: e[k] for k in self._columns if k in e} for e in examples]
        return self._collate(examples)


def _cross_entropies(model: nn.Module, batch: Any) -> Tensor:
    inputs, classes = batch
    return F.cross_entropy(model(inputs), classes, reduction="none")


def _squared_errors(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    found = model(inputs)
    errors = F.mse_loss(found, targets.to(found).view_as(found), reduction="none")
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors


def _next_tokens(model: nn.Module, batch: Any, *, autocast: torch.dtype | None) -> Tensor:
    logits, labels = _run(model, batch, autocast)
    labels = labels[:, 1:]
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    return each.sum(1) / (labels != _IGNORED).sum(1).clamp(min=1)


def _classes(model: nn.Module, batch: Any, *, autocast: torch.dtype | None) -> Tensor:
    logits, labels = _run(model, batch, autocast)
    return F.cross_entropy(logits, labels, reduction="none")


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
