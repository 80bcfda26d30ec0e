"""Masks of masked language models that are drawn for each example from its ID.

An example of ``task.train`` has a seed with it, made of its ID. The collator is called for each
example alone, with that seed, and once for all together, which says how they are padded. So what is
masked depends on the ID, and on no other example of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracer.errors import TaskError, shown
from tracer.identities import plain_ids
from tracer.records import Seeds
from tracer.seeds import seeded


def require_usual_generators(collate: Any) -> None:
    """Raise TaskError if a collator has a generator of its own."""
    if getattr(collate, "seed", None) is not None:
        raise TaskError(
            f"the collator {type(collate).__name__}(seed={collate.seed}) has a generator of its "
            "own, which goes on from call to call, so that no ID says what is masked.\n"
            "1. Leave seed= out of it; masked_lm(seed=...) takes one."
        )


class Seeded(NamedTuple):
    """An example, and what its mask is drawn from."""

    example: Any
    seed: int


class SeededExamples:
    """Examples of a data set with the seeds of their IDs; all else is the data set's own.

    Args:
        dataset: Examples by ID.
        seed: What the seeds are made of, besides the IDs.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # asked while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Any) -> Seeded:
        (identity,) = plain_ids([key])
        return Seeded(self._dataset[key], Seeds(self._seed, 0).of(identity))


class SeededMasks:
    """The collate function of a masked language model's task.

    Args:
        collate: Draws at random, from torch's, NumPy's or Python's own generators.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Return the batch of some examples, each masked as if it were alone."""
        for example in examples:
            if not isinstance(example, Seeded):
                raise TaskError(
                    "task.collate of masked_lm draws a mask from an example's ID, which examples "
                    f"of task.train and task.test have; found {shown(example)}.\n"
                    "1. Train on task.train: Trainer(train_dataset=task.train, "
                    "data_collator=task.collate).\n"
                    "2. To draw other masks in each epoch, train with the collator itself and log "
                    'the batches: trace(..., record="batches").'
                )
        with seeded(0):
            batch = dict(self._collate([one.example for one in examples]))
        for row, one in enumerate(examples):
            with seeded(one.seed):
                alone = self._collate([one.example])
            _put(alone, batch, row)
        return batch


class ShownWithin:
    """Shows the example that has a seed with it.

    Args:
        show: As ``Task`` takes it.
    """

    def __init__(self, show: Callable[[Any], Any]) -> None:
        self.show = show

    def __call__(self, one: Seeded) -> Any:
        """Return what is shown of an example."""
        return self.show(one.example)


def _put(alone: Mapping[str, Any], batch: dict[str, Any], row: int) -> None:
    """Put an example that was collated alone into its row of a batch."""
    width = alone["labels"].shape[-1]
    there, here = _place(alone, 0, width), _place(batch, row, width)
    for name, values in alone.items():
        if isinstance(values, Tensor) and values.ndim > 1 and values.shape[1] == width:
            batch[name][row, here] = values[0, there]


def _place(batch: Mapping[str, Any], row: int, width: int) -> slice:
    """Return where the example of a row lies between its padding."""
    if batch["labels"].shape[-1] == width and "attention_mask" not in batch:
        return slice(0, width)
    if "attention_mask" not in batch:
        raise TaskError(
            "the collator pads sequences and returns no attention_mask, so where a sequence lies "
            "is not known.\n1. Let it return one: 1 for a token, 0 for padding."
        )
    places = torch.nonzero(batch["attention_mask"][row])[:, 0]
    if not len(places):
        raise TaskError(
            "an example of task.train or task.test has no token, so no mask can be drawn.\n"
            "1. Leave empty sequences out of the data set."
        )
    return slice(int(places[0]), int(places[-1]) + 1)
