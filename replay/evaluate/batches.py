"""Loads and collates the examples that are evaluated, and keeps them while there is room.

A data set may load lazily and be larger than memory, and a loss may change its batch in place. So
examples are kept while they are in use or fit into a share of the budget, and every evaluation gets
a copy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet, ref

import torch
from torch.utils.data import default_collate

from replay.evaluate.nested import checksum, fresh, moved, nbytes_of, shape
from replay.task import Task, collated
from tracer.errors import TaskError, shown
from tracer.records import ID, Seeds
from tracer.seeds import example


class Shelf:
    """Keeps batches as long as all of them fit; of others those used last on each side.

    Args:
        room: Bytes.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: WeakSet[Batches] = WeakSet()
        self._last: dict[str, ref[Batches]] = {}

    def use(self, batches: Batches) -> None:
        """Note what is used, and drop what was used before it unless there is room."""
        before = self._last.get(batches.side, lambda: None)()
        if before is not None and before is not batches and before not in self._kept:
            before.drop()
        self._last[batches.side] = ref(batches)
        self._kept.discard(batches)
        if sum(one.nbytes for one in self._kept) + batches.nbytes <= self._room:
            self._kept.add(batches)


class Batches:
    """Some examples of one side, collated.

    Args:
        task: The task.
        ids: Their IDs.
        side: ``"test"`` or ``"train"``.
        device: Where batches go.
        shelf: What is kept.
        seeds: What training examples are drawn from in the first epoch, if they are.
    """

    def __init__(
        self,
        task: Task,
        ids: Sequence[ID],
        side: str,
        device: torch.device,
        shelf: Shelf,
        seeds: Seeds | None = None,
    ) -> None:
        self.side, self.nbytes = side, 0
        self._dataset = task.test if side == "test" else task.train
        self._task, self._ids, self._device, self._shelf = task, ids, device, shelf
        self._examples: list[Any] = []
        self._raw = 0  # bytes of them
        self._seeds = seeds if side == "train" else None
        self._whole: dict[torch.dtype | None, Any] = {}
        self._seen: list[int] = []

    def of(self, columns: Sequence[int], dtype: torch.dtype | None) -> Any:
        """Return some examples' batch, to be changed at will, in a dtype (None is its own)."""
        if not self._examples:
            self._load()
        if len(columns) < len(self._ids):
            return self._collated(columns, dtype)
        if dtype not in self._whole:
            self._whole[dtype] = self._collated(columns, dtype)
            self._measure()
        self._shelf.use(self)
        return fresh(self._whole[dtype])

    def shapes(self) -> set[Any]:
        """Return the different shapes of the raw examples; None stands for an unknown one."""
        if not self._examples:
            self._load()
        return {shape(example) for example in self._examples}

    def require_same(self, j: int) -> None:
        """Load and collate one example again.

        Raises:
            TaskError: The data are others.
        """
        before = self.of([j], None)
        again = self._fetched(self._ids[j])
        if checksum(again) != checksum(self._examples[j]):
            raise self._drawn(j)
        if checksum(self._batch([again], None)) != checksum(before):
            raise TaskError(
                f"{self.side} set: example {shown(self._ids[j])} was collated twice and gave two "
                "batches: collate (or the data set) draws at random.\n"
                "  1. Let task.collate draw nothing where the test side uses it.\n"
                '  2. If training data are augmented there, trace with record="batches".'
            )

    def begin_epoch(self, epoch: int | None) -> None:
        """Take the examples of another epoch, if they are drawn from seeds."""
        if self._seeds is not None and self._seeds.epoch != (epoch or 0):
            self.drop()
            self._seeds, self._seen = replace(self._seeds, epoch=epoch or 0), []

    def drop(self) -> None:
        """Forget examples and batches; they are loaded when they are used again."""
        self._seen = self._seen or [checksum(example) for example in self._examples]
        self._examples, self._whole, self.nbytes = [], {}, 0

    def _fetched(self, identity: ID) -> Any:
        return example(self._dataset, identity, self._seeds, identity)

    def _collated(self, columns: Sequence[int], dtype: torch.dtype | None) -> Any:
        """Collate copies, which a collate function may change and its batch be views of."""
        return self._batch([self._examples[j] for j in columns], dtype)

    def _batch(self, found: list[Any], dtype: torch.dtype | None) -> Any:
        if self._task.collate is not default_collate:  # which copies by itself
            found = [fresh(example, deep=False) for example in found]
        return moved(collated(self._task, found), self._device, dtype)

    def _load(self) -> None:
        self._shelf.use(self)  # before loading: what was used before goes first
        self._examples = [self._fetched(identity) for identity in self._ids]
        self._raw = nbytes_of(self._examples)
        self._measure()
        for j, seen in enumerate(self._seen):
            if checksum(self._examples[j]) != seen:
                raise self._drawn(j)
        self._shelf.use(self)

    def _measure(self) -> None:
        batches = sum(nbytes_of(batch) for batch in self._whole.values())
        # images of other libraries do not tell: as much as what they are collated to
        self.nbytes = batches + max(self._raw, batches // max(1, len(self._whole)))

    def _drawn(self, j: int) -> TaskError:
        others = (
            "\n  3. Or leave out what reads training examples outside of the run's batches "
            "(tracincp, self-influence at checkpoints): --method tracin --method ideal."
        )
        return TaskError(
            f"{self.side} set: example {shown(self._ids[j])} was loaded twice and gave other data "
            "the second time, so its scores mean nothing.\n"
            "  1. Make the data set give the same example for the same ID (seed what it draws by "
            "the ID).\n  2. Give the task a set without augmentation here."
            + (others if self.side == "train" else "")
        )
