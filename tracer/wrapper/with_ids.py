"""Datasets and collate functions that carry each example's ID along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from tracer import seeds
from tracer.errors import TracingError, shown
from tracer.identities import plain_ids
from tracer.records import ID, Seeds
from tracer.wrapper.arguments import checked_epoch

Batch = TypeVar("Batch")


def with_ids(dataset: Any, ids: Sequence[ID] | None = None, *, seed: int | None = None) -> WithIds:
    """Return a dataset of ``(id, example)`` over a Dataset, a sequence or a mapping.

    Args:
        dataset: The examples.
        ids: One ID for each, in order; default: a mapping's keys, else the positions.
        seed: From 0 to ``2**63 - 1``, for ``record="seeds"``: while an example is fetched, torch's
            CPU generator, NumPy's and Python's ``random`` have a seed made of this one, the epoch
            and the ID. What ``dataset`` draws is then the same in every process and at replay.

    Raises:
        TracingError: The dataset has no positions, there are not as many IDs as examples, or the
            seed is none.
    """
    return WithIds(dataset, ids, seed)


class WithIds(Dataset[tuple[ID, Any]]):
    """What ``with_ids`` returns.

    Attributes:
        seed: As given.
    """

    def __init__(self, dataset: Any, ids: Sequence[ID] | None, seed: int | None) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise TracingError(
                f"with_ids needs a dataset with positions, found {type(dataset).__name__}; for a "
                "stream, yield (id, example) pairs yourself and pass the IDs to optimizer.step."
            )
        self._dataset = dataset
        keyed = isinstance(dataset, Mapping) or hasattr(dataset, "keys")
        keys = list(dataset.keys()) if keyed else range(len(dataset))
        self._keys: Sequence[Any] = keys
        self._ids: Sequence[ID] = keys if ids is None else list(ids)
        if len(self._ids) != len(keys):
            raise TracingError(
                f"with_ids got {len(self._ids)} IDs for {len(keys)} examples; give one each."
            )
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**63):
            raise TracingError(
                f"with_ids needs a whole number from 0 to 2**63 - 1 as seed, found {shown(seed)}."
            )
        self.seed = seed
        # shared, so that it changes in worker processes, too
        self._epoch: Tensor | None = None
        if seed is not None:
            self._epoch = torch.zeros(1, dtype=torch.int64)
            self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[ID, Any]:
        identity, key = self._ids[index], self._keys[index]
        if self.seed is None:
            return identity, self._dataset[key]
        now, plain = Seeds(self.seed, self.epoch), plain_ids([identity])[0]
        return identity, seeds.example(self._dataset, key, now, plain)

    @property
    def epoch(self) -> int:
        """The epoch that examples are drawn for; 0 without a seed, which nothing depends on."""
        return 0 if self._epoch is None else int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw for another epoch, in worker processes, too, before the loader's next round.

        Raises:
            TracingError: It is no whole number from 0 on.
        """
        number = checked_epoch(epoch)
        if self._epoch is not None and number is not None:
            self._epoch.fill_(number)


def collate_with_ids(
    collate_fn: Callable[[list[Any]], Batch],
) -> Callable[[list[tuple[ID, Any]]], tuple[list[ID], Batch]]:
    """Return a collate function for ``with_ids`` that leaves the examples to ``collate_fn``.

    Args:
        collate_fn: List of examples to a batch, as it would be without IDs.
    """
    return _CollateWithIds(collate_fn)


class _CollateWithIds:
    # a class, so that DataLoader workers can pickle it
    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate = collate_fn

    def __call__(self, pairs: list[tuple[ID, Any]]) -> tuple[list[ID], Any]:
        ids, examples = zip(*pairs, strict=True)
        return list(ids), self._collate(list(examples))
