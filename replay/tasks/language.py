"""Ready tasks for language models of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from replay.task import Task
from replay.tasks.building import built
from replay.tasks.collators import Decoded, collate_of
from replay.tasks.losses import ClassLosses, TokenLosses
from replay.tasks.masks import (
    SeededExamples,
    SeededMasks,
    ShownWithin,
    require_usual_generators,
)

_MASKS = "DataCollatorForLanguageModeling"


def causal_lm(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    tokenizer: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    columns: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    label_smoothing: float = 0.0,
    **rest: Any,
) -> Task:
    """Return a task whose loss is the mean over a sequence's next tokens that count.

    Those whose label is -100 do not count; a sequence without any has the loss 0.

    Args:
        model: A causal language model of transformers, or a function that builds it.
        train: Training examples by ID: mappings.
        test: Test examples by ID.
        tokenizer: Makes the collator, unless there is ``collate``, and shows examples as text.
        collate: The trainer's collator; its batches are mappings with ``labels``.
        columns: What of an example the collator gets, as a Trainer removes columns; None is all,
            or what the tokenizer names if it makes the collator.
        autocast: Of the run's forwards, such as ``torch.bfloat16``; values in float64 go without.
        label_smoothing: As in the run: ``label_smoothing_factor`` of a Trainer.
        **rest: Others of ``Task``.
    """
    collator = collate_of(_MASKS, {"mlm": False}, collate, tokenizer, columns)
    loss, shown = TokenLosses(True, autocast, label_smoothing), _shown(tokenizer)
    return Task(built(model), loss, train, test, collate=collator, **{**shown, **rest})


def masked_lm(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    tokenizer: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    columns: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    **rest: Any,
) -> Task:
    """Return a task whose loss is the mean over a sequence's masked tokens, 0 without any.

    What is masked is drawn from the example's ID: in ``task.train`` and ``task.test`` an example
    has the same mask each time, whatever else is in its batch. Either train on those, with
    ``task.collate``; or train with a collator that draws new masks each time, and log the batches,
    ``record="batches"``.

    Args:
        model: A masked language model of transformers, or a function that builds it.
        train: Training examples by ID: mappings.
        test: Test examples by ID.
        tokenizer: Makes the collator, unless there is ``collate``, and shows examples as text.
        collate: The trainer's collator, which masks and makes ``labels``; it draws from the usual
            generators, and has none of its own.
        columns: What of an example the collator gets, as a Trainer removes columns; None is all,
            or what the tokenizer names if it makes the collator.
        autocast: Of the run's forwards, such as ``torch.bfloat16``; values in float64 go without.
        label_smoothing: As in the run: ``label_smoothing_factor`` of a Trainer.
        seed: What masks are drawn from besides the ID.
        **rest: Others of ``Task``.

    Raises:
        TaskError: The collator draws from a generator of its own.
    """
    require_usual_generators(collate)
    collator = collate_of(_MASKS, {"mlm": True}, collate, tokenizer, columns)
    loss, shown = TokenLosses(False, autocast, label_smoothing), _shown(tokenizer)
    task = Task(built(model), loss, train, test, collate=collator, **{**shown, **rest})
    return replace(
        task,
        train=SeededExamples(train, seed),
        test=SeededExamples(test, seed),
        collate=SeededMasks(task.collate),
        show=None if task.show is None else ShownWithin(task.show),
    )


def sequence_classification(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    tokenizer: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    columns: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    label_smoothing: float = 0.0,
    **rest: Any,
) -> Task:
    """Return a task whose loss is the cross-entropy of a sequence's class.

    Of several labels, or numbers, it is the loss that transformers' models have; see their
    ``config.problem_type``.

    Args:
        model: A sequence classifier of transformers, or a function that builds it.
        train: Training examples by ID: mappings.
        test: Test examples by ID.
        tokenizer: Makes the collator, unless there is ``collate``, and shows examples as text.
        collate: The trainer's collator; its batches are mappings with ``labels``.
        columns: What of an example the collator gets, as a Trainer removes columns; None is all,
            or what the tokenizer names if it makes the collator.
        autocast: Of the run's forwards, such as ``torch.bfloat16``; values in float64 go without.
        label_smoothing: As in the run: ``label_smoothing_factor`` of a Trainer.
        **rest: Others of ``Task``.
    """
    collator = collate_of("DataCollatorWithPadding", {}, collate, tokenizer, columns)
    loss, shown = ClassLosses(autocast, label_smoothing), _shown(tokenizer)
    return Task(built(model), loss, train, test, collate=collator, **{**shown, **rest})


def _shown(tokenizer: Any) -> dict[str, Any]:
    return {} if tokenizer is None else {"show": Decoded(tokenizer)}
