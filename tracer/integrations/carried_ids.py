"""IDs that travel inside a loader's batches, whatever sampler, collator and workers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from tracer.errors import TracingError
from tracer.records import ID
from tracer.wrapper.with_ids import collate_with_ids

KEY = "tracin_ids"


def carry_ids(loader: Any, ids: Sequence[ID] | None) -> None:
    """Let a loader's batches, which are mappings, have their examples' IDs, too.

    Sampler, order and examples stay as they are: the data set and the collate function are
    replaced inside the loader, below whatever removes columns or rebuilds it to skip batches.

    Args:
        loader: A ``DataLoader``, or accelerate's around one.
        ids: One for each example; default: the positions.

    Raises:
        TracingError: The data set has no positions, or there are not as many IDs.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if not isinstance(inner, DataLoader) or isinstance(inner.dataset, IterableDataset):
        raise TracingError(
            f"the training data are a stream ({type(getattr(inner, 'dataset', inner)).__name__}), "
            "whose examples have no positions.\n"
            "1. Give the trainer a data set with a length, from which a replay can take an "
            "example by its ID."
        )
    data: Any = inner.dataset
    if ids is not None and len(ids) != len(data):
        raise TracingError(
            f"trace(ids=...) got {len(ids)} IDs for {len(data)} examples; give one each."
        )
    vars(inner)["dataset"] = _Identified(data, ids)  # a loader forbids the attribute
    inner.collate_fn = _Carrying(inner.collate_fn)


def taken_ids(batch: Any) -> list[ID]:
    """Take a batch's IDs out of it.

    Raises:
        TracingError: It has none, or not one for each row: examples were packed into one.
    """
    ids: list[ID] | None = batch.pop(KEY, None)
    if ids is None:
        raise TracingError(
            "a batch has no IDs: it is not of the loader that get_train_dataloader returned.\n"
            "1. Call trace(trainer, ...) last, when the trainer is complete."
        )
    for name in ("input_ids", "labels"):
        shape = tuple(getattr(batch.get(name), "shape", ()))
        if shape and shape[0] != len(ids):
            raise TracingError(
                f"packed sequences cannot be traced: a batch of {len(ids)} examples has "
                f"{name} of shape {shape}, not a row for each.\n"
                "1. Turn packing off, or use a collator that pads."
            )
    return ids


class _Identified(Dataset[tuple[ID, Any]]):
    """A data set whose examples have their IDs, and all else of which is its own."""

    def __init__(self, dataset: Any, ids: Sequence[ID] | None) -> None:
        self._dataset, self._ids = dataset, range(len(dataset)) if ids is None else list(ids)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # asked while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[ID, Any]:
        return self._ids[index], self._dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[ID, Any]]:
        """Return a batch at once, where the data set knows how: a loader asks for this first."""
        together = getattr(self._dataset, "__getitems__", None)
        examples = together(indices) if together else [self._dataset[index] for index in indices]
        return list(zip((self._ids[index] for index in indices), examples, strict=True))


class _Carrying:
    # a class, so that workers can pickle it
    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate = collate_with_ids(collate_fn)

    def __call__(self, pairs: list[tuple[ID, Any]]) -> Any:
        ids, batch = self._collate(pairs)
        batch[KEY] = ids
        return batch
