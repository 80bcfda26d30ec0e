"""Which examples share a forward pass: as many as a stated budget of memory allows.

Examples that are not independent in eval mode (statistics of the batch, losses over pairs) are
taken one at a time, since ``φ`` is defined for each alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from replay.gradients.per_example import PerExample
from replay.measured import Examples, Models
from replay.task import Task, example_ids
from replay.trajectory import State
from tracer.errors import InputError
from tracer.records import ID

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_KEPT = 4  # gradients of one test example alive at once: both ends of a step, two in between


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

    def of(self, ids: Sequence[ID], side: str, *, most: int | None = None) -> list[Examples]:
        """Return examples of a side (``"test"`` or ``"train"``) in chunks of at most ``most``."""
        size = self._size(ids, side)
        size = size if most is None else min(size, most)
        return [
            Examples(self._task, ids[k : k + size], side, self._models)
            for k in range(0, len(ids), size)
        ]

    def _size(self, ids: Sequence[ID], side: str) -> int:
        where = f"{side} set, step 0"
        if not self._are_independent(side, where):
            return 1
        one = Examples(self._task, ids[:1], side, self._models)
        return _chunk_size(one, self._first, self._budget, where)

    def _are_independent(self, side: str, where: str) -> bool:
        """Ask once a side, of up to 64 examples."""
        if side not in self._independent:
            dataset = self._task.test if side == "test" else self._task.train
            some = Examples(self._task, example_ids(dataset)[:64], side, self._models)
            self._independent[side] = some.are_independent(self._first, where)
        return self._independent[side]


def _chunk_size(one: Examples, state: State, budget: int, where: str) -> int:
    """Return how many examples to evaluate together so that a pass keeps to the budget.

    Half of it goes to the activations of a forward pass and the gradients kept of one example,
    measured on ``one``; the rest is the training side's.
    """
    seen = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = one.gradients(state, where)
    each = 3 * sum(seen.values()) + _KEPT * _stored_bytes(found)
    return max(1, budget // 2 // max(1, each))


def _stored_bytes(found: PerExample) -> int:
    tensors = [
        *(t for f in found.factors.values() for t in (f.inputs, f.deltas)),
        *found.biases.values(),
        *(t for _, rows in found.blocks() for t in rows.values()),
    ]
    return sum(t.numel() * t.element_size() for t in tensors)
