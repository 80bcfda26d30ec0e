"""Which examples share a forward pass: as many as a stated budget of memory allows.

Examples that are not independent in eval mode (statistics of the batch, losses over pairs) are
taken one at a time, since ``φ`` is defined for each alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import torch

from replay.asked import WAITING
from replay.gradients.products import is_cheap
from replay.measured import Examples, Models
from replay.task import Task, example_ids
from replay.trajectory import State
from tracer.errors import InputError
from tracer.records import ID

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ENDS = 2  # gradients of one test example alive at once: at both ends of a step
_BETWEEN = 2  # more of them where a method looks between the ends ...
_POINTS = 8  # ... and where those are kept until later steps have told what they ask


def parse_bytes(memory: int | str) -> int:
    """Return a budget in bytes from a number or from text like ``"2GiB"`` or ``"500M"``.

    Raises:
        InputError: It is not a positive size.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", str(memory).lower())
    try:
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise InputError(f'memory is a size such as "2GiB" or "500MB", found {memory!r}.')
    return size


class Chunks:
    """Cuts the examples of a task into chunks.

    Args:
        task: The task.
        models: The bound copies.
        first: The state on which sizes and independence are measured.
        budget: Bytes.
    """

    def __init__(self, task: Task, models: Models, first: State, budget: int) -> None:
        self._task, self._models, self._first, self._budget = task, models, first, budget
        self._independent: dict[str, bool] = {}

    def of(
        self,
        ids: Sequence[ID],
        side: str,
        *,
        most: int | None = None,
        kept: int = 0,
        between: bool = True,
    ) -> list[Examples]:
        """Return examples of a side (``"test"`` or ``"train"``) in chunks.

        Args:
            ids: Their IDs.
            side: ``"test"`` or ``"train"``.
            most: Largest chunk.
            kept: Vectors of the parameters' size that each example needs besides.
            between: Whether gradients are taken between the ends of a step, too.
        """
        points = _ENDS + between * (_BETWEEN + _POINTS * (kept > 0))
        size = self._size(ids, side, kept, points)
        size = size if most is None else min(size, most)
        size = math.ceil(len(ids) / math.ceil(len(ids) / size)) if ids else 1  # about alike
        return [
            Examples(self._task, ids[k : k + size], side, self._models)
            for k in range(0, len(ids), size)
        ]

    def for_splits(
        self, ids: Sequence[ID], methods: Sequence[str], *, plain: bool
    ) -> list[Examples]:
        """Return test examples in chunks whose every step some methods split.

        Args:
            ids: Their IDs.
            methods: Names.
            plain: No gradient is kept from step to step.
        """
        kept = 0 if plain else len(methods)
        return self.of(ids, "test", kept=kept, between="ideal" in methods)

    def _size(self, ids: Sequence[ID], side: str, kept: int, points: int) -> int:
        where = f"{side} set, step 0"
        one = Examples(self._task, ids[:1], side, self._models)
        vector = sum(max(4, w.element_size()) * w.numel() for w in self._first.parameters.values())
        size = _chunk_size(one, self._first, self._budget, points, kept * vector, where)
        return size if self._are_independent(side, max(2, min(size, 64)), where) else 1

    def _are_independent(self, side: str, count: int, where: str) -> bool:
        """Ask once a side, of some examples."""
        if side not in self._independent:
            dataset = self._task.test if side == "test" else self._task.train
            some = Examples(self._task, example_ids(dataset)[:count], side, self._models)
            self._independent[side] = some.are_independent(self._first, where)
        return self._independent[side]


def _chunk_size(
    one: Examples, state: State, budget: int, points: int, more: int, where: str
) -> int:
    """Return how many examples to evaluate together so that a pass keeps to the budget.

    Half of it goes to the activations of a forward pass and the gradients kept of one example,
    measured on ``one``; the rest is the training side's.
    """
    seen: dict[int, int] = {}
    own = one.storages()

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = one.gradients(state, where)
    waits = sum(
        t.nbytes for some in found.pieces.values() if is_cheap(some) for t in some[0].tensors
    )
    kept = points * int(found.nbytes) + (WAITING * waits if more else 0)
    each = 3 * sum(seen.values()) + kept + more
    return max(1, budget // 2 // max(1, each))


def placed(chunks: list[Examples]) -> Iterator[tuple[slice, Examples]]:
    """Yield each chunk with its rows in the table."""
    start = 0
    for chunk in chunks:
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)
