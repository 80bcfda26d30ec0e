"""IDs that travel inside a loader's batches, whatever sampler, collator and workers do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from tracer.errors import TracingError
from tracer.records import ID
from tracer.wrapper.with_ids import collate_with_ids

KEY = "tracin_ids"


class Carried:
    """A batch of any kind with the IDs of its examples.

    Args:
        ids: Of its examples, in order.
        batch: What the collate function made of them.
    """

    def __init__(self, ids: list[ID], batch: Any) -> None:
        self.ids, self.batch = ids, batch

    def pin_memory(self, device: Any = None) -> Carried:
        """Return it with the batch in pinned memory, as loaders ask."""
        return Carried(self.ids, pin_memory(self.batch, device))  # type: ignore[no-untyped-call]


def in_mapping(ids: list[ID], batch: Any) -> Any:
    """Put IDs into a batch that is a mapping, which others look into before they are taken out."""
    batch[KEY] = ids
    return batch


def carry_ids(
    loader: Any, ids: Sequence[ID] | None, join: Callable[[list[ID], Any], Any] = Carried
) -> Callable[[], None]:
    """Let a loader's batches have their examples' IDs, too.

    Sampler, order and examples stay as they are: the data set and the collate function are
    replaced inside the loader, below whatever removes columns or rebuilds it to skip batches.

    Args:
        loader: A ``DataLoader``, or accelerate's around one.
        ids: One for each example; default: what the sampler draws, the positions.
        join: Makes a batch of IDs and a batch.

    Returns:
        Leaves the loader as it was.

    Raises:
        TracingError: The data set has no positions, there are not as many IDs, or the loader gives
            its batches in a way of its own.
    """
    inner = getattr(loader, "base_dataloader", loader)
    _require_positions(inner)
    data: Any = inner.dataset
    if ids is not None and len(ids) != len(data):
        raise TracingError(
            f"trace(ids=...) got {len(ids)} IDs for {len(data)} examples; give one each."
        )
    collate, given = inner.collate_fn, vars(inner)  # a loader forbids to set its data set

    def undo() -> None:
        given["dataset"], inner.collate_fn = data, collate

    given["dataset"], inner.collate_fn = _Identified(data, ids), _Carrying(collate, join)
    return undo


def carrying(loader: Any, ids: Sequence[ID] | None) -> Any:
    """Return a loader like one of the user's, which stays as it is, of ``Carried`` batches.

    Raises:
        TracingError: As for ``carry_ids``.
    """
    if isinstance(loader, DataLoader) and type(loader).__iter__ is not DataLoader.__iter__:
        raise TracingError(
            f"the training loader is a {type(loader).__name__} with an __iter__ of its own, so "
            "the IDs of its batches are not known.\n"
            "1. Train with a torch DataLoader; change batches in its collate_fn or in the model."
        )
    own = copy.copy(loader)
    carry_ids(own, ids)
    return own


def check_rows(batch: Any, ids: Sequence[ID]) -> None:
    """Raise TracingError if a batch has not one row for each ID: examples were packed into one."""
    for name in ("input_ids", "labels"):
        shape = tuple(getattr(batch.get(name), "shape", ()))
        if shape and shape[0] != len(ids):
            raise TracingError(
                f"packed sequences cannot be traced: a batch of {len(ids)} examples has "
                f"{name} of shape {shape}, not a row for each.\n"
                "1. Turn packing off, or use a collator that pads."
            )


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
    check_rows(batch, ids)
    return ids


def _require_positions(loader: Any) -> None:
    """Raise TracingError if examples have no positions, or come in batches already."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise TracingError(
            f"the training data are a stream ({type(getattr(loader, 'dataset', loader)).__name__}),"
            " whose examples have no positions.\n"
            "1. Give the trainer a DataLoader of a data set with a length, from which a replay can "
            "take an example by its ID."
        )
    if loader.batch_sampler is None:
        raise TracingError(
            "the training loader makes no batches (batch_size=None), so the IDs in what its data "
            "set returns are not known.\n"
            "1. Let the data set return one example, and give the loader a batch_size."
        )


class _Identified(Dataset[tuple[ID, Any]]):
    """A data set whose examples have their IDs, and all else of which is its own."""

    def __init__(self, dataset: Any, ids: Sequence[ID] | None) -> None:
        self._dataset, self._ids = dataset, None if ids is None else list(ids)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # asked while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> tuple[ID, Any]:
        return self._named([index])[0], self._dataset[index]

    def __getitems__(self, indices: list[Any]) -> list[tuple[ID, Any]]:
        """Return a batch at once, where the data set knows how: a loader asks for this first."""
        together = getattr(self._dataset, "__getitems__", None)
        examples = together(indices) if together else [self._dataset[index] for index in indices]
        return list(zip(self._named(indices), examples, strict=True))

    def _named(self, indices: list[Any]) -> list[ID]:
        return indices if self._ids is None else [self._ids[index] for index in indices]


class _Carrying:
    # a class, so that workers can pickle it
    def __init__(
        self, collate_fn: Callable[[list[Any]], Any], join: Callable[[list[ID], Any], Any]
    ) -> None:
        self._collate, self._join = collate_with_ids(collate_fn), join

    def __call__(self, pairs: list[tuple[ID, Any]]) -> Any:
        return self._join(*self._collate(pairs))
