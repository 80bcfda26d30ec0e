"""What the test side evaluates: examples are loaded, collated, kept while there is room, copied.

A data set may load lazily and be larger than memory, and a loss may change its batch in place. So
examples are kept while they are in use or fit into a share of the budget, and every evaluation gets
a copy of its own.
"""

from __future__ import annotations

import copy
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet, ref

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from replay.task import Task
from tracer.errors import TaskError
from tracer.records import ID

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return a batch on a device, its floating-point tensors in ``dtype`` if one is given."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        return leaf.to(device=device, dtype=wanted)

    return _mapped(batch, move)


def fresh(batch: Any, *, deep: bool = True) -> Any:
    """Return a copy that may be changed in place; what cannot be copied is shared.

    Args:
        batch: Tensors, arrays and others in containers.
        deep: Copy objects of other libraries, too.
    """
    known: dict[int, Any] = {}  # what stands twice stays one thing

    def own(leaf: Any) -> Any:
        if isinstance(leaf, _PLAIN):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = _copied(leaf, deep=deep)
        return known[id(leaf)]

    return _mapped(batch, own)


def _copied(leaf: Any, *, deep: bool) -> Any:
    if isinstance(leaf, Tensor):  # copy.deepcopy would copy all that a view is a part of
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    try:
        return copy.deepcopy(leaf) if deep or isinstance(leaf, np.ndarray) else leaf
    except Exception:  # files, locks, generators
        return leaf


def _mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return _rebuilt(batch, {k: _mapped(v, change) for k, v in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(v, change) for v in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_mapped(v, change) for v in batch)
    return change(batch)


def _rebuilt(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(original) is dict:
        return items
    clone = copy.copy(original)
    if hasattr(clone, "update"):
        clone.update(items)
        return clone
    return items


def shape(example: Any) -> Any:
    """Return what tells examples of different lengths apart; None where that is unknown."""
    if isinstance(example, (Tensor, np.ndarray)):
        return tuple(example.shape)
    if isinstance(example, (str, bytes)):
        return len(example)
    if isinstance(example, (*_PLAIN, np.generic)):
        return ()
    if isinstance(example, Mapping):
        items = [(key, shape(value)) for key, value in example.items()]
        return None if any(found is None for _, found in items) else tuple(items)
    if isinstance(example, (list, tuple)):
        parts = [shape(value) for value in example]
        return None if None in parts else tuple(parts)
    return None


def _nbytes(batch: Any) -> int:
    """Return the bytes of what is known to take any."""
    sizes: dict[int, int] = {}

    def count(leaf: Any) -> Any:
        known = isinstance(leaf, (Tensor, np.ndarray))
        sizes[id(leaf)] = leaf.nbytes if known else sys.getsizeof(leaf, 0)
        return leaf

    _mapped(batch, count)
    return sum(sizes.values())


def _checksum(example: Any) -> int:
    found = 0

    def add(leaf: Any) -> Any:
        nonlocal found
        if isinstance(leaf, np.ndarray) and leaf.dtype != object:
            found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
        elif isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel():
            flat = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            found = zlib.crc32(flat.view(torch.uint8).numpy().data, found)
        elif isinstance(leaf, _PLAIN):
            found = zlib.crc32(repr(leaf).encode(), found)
        return leaf

    _mapped(example, add)
    return found


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
    """

    def __init__(
        self, task: Task, ids: Sequence[ID], side: str, device: torch.device, shelf: Shelf
    ) -> None:
        self.side, self.nbytes = side, 0
        self._dataset = task.test if side == "test" else task.train
        self._task, self._ids, self._device, self._shelf = task, ids, device, shelf
        self._examples: list[Any] = []
        self._raw = 0  # bytes of them
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

    def drop(self) -> None:
        """Forget examples and batches; they are loaded when they are used again."""
        self._seen = self._seen or [_checksum(example) for example in self._examples]
        self._examples, self._whole, self.nbytes = [], {}, 0

    def _collated(self, columns: Sequence[int], dtype: torch.dtype | None) -> Any:
        """Collate copies, which a collate function may change and its batch be views of."""
        found = [self._examples[j] for j in columns]
        if self._task.collate is not default_collate:  # which copies by itself
            found = [fresh(example, deep=False) for example in found]
        return moved(self._task.collate(found), self._device, dtype)

    def _load(self) -> None:
        self._shelf.use(self)  # before loading: what was used before goes first
        self._examples = [self._dataset[identity] for identity in self._ids]
        self._raw = _nbytes(self._examples)
        self._measure()
        for j, seen in enumerate(self._seen):
            if _checksum(self._examples[j]) != seen:
                raise TaskError(
                    f"{self.side} set: example {self._ids[j]!r} was loaded twice and gave other "
                    "data the second time, so its scores mean nothing; make the data set give the "
                    "same example for the same ID (seed random augmentation by the ID)."
                )
        self._shelf.use(self)

    def _measure(self) -> None:
        batches = sum(_nbytes(batch) for batch in self._whole.values())
        # images of other libraries do not tell: as much as what they are collated to
        self.nbytes = batches + max(self._raw, batches // max(1, len(self._whole)))
