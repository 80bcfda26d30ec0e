"""Datasets and collate functions that carry each example's ID along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset, IterableDataset

from tracer.errors import TracingError
from tracer.records import ID

Batch = TypeVar("Batch")


def with_ids(dataset: Any, ids: Sequence[ID] | None = None) -> Dataset[tuple[ID, Any]]:
    """Return a dataset of ``(id, example)`` over a Dataset, a sequence or a mapping.

    Args:
        dataset: The examples.
        ids: One ID for each, in order; default: a mapping's keys, else the positions.

    Raises:
        TracingError: The dataset has no positions, or there are not as many IDs as examples.
    """
    return _WithIds(dataset, ids)


class _WithIds(Dataset[tuple[ID, Any]]):
    def __init__(self, dataset: Any, ids: Sequence[ID] | None) -> None:
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

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[ID, Any]:
        return self._ids[index], self._dataset[self._keys[index]]


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
