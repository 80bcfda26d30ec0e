"""Cuts examples into chunks that share a forward pass: as many as a budget of memory allows.

Examples that are not independent in eval mode (padding, statistics of the batch, losses over pairs)
are taken one at a time, since ``φ`` is defined for each alone.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real

import torch

from replay.evaluate.batches import Shelf
from replay.evaluate.binding import Models
from replay.evaluate.certainty import settle
from replay.evaluate.looks import are_alike, independent
from replay.evaluate.nested import storages
from replay.evaluate.slots import SLOTS, is_large
from replay.evaluate.state import State, States
from replay.evaluate.test_side import Examples
from replay.evaluate.together import refused
from replay.gradients.stacks import unlike
from replay.processes.alone import Alone
from replay.processes.group import Group
from replay.task import Task
from tracer.errors import InputError, NonFiniteError, shown
from tracer.records import ID, Seeds

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ENDS = 2  # gradients of one test example alive at once: at both ends of a step
_BETWEEN = 2  # more of them where a method looks between the ends ...
_PRODUCTS = 4  # tables of a step's examples by test examples alive at once, for each state
WAITING = 4  # outer products that wait to be added to a buffer's adjoint, at most
BLOCK = 1024  # training examples taken together at most
_SHELF = 8  # the part of the budget that examples may take which are not in use
_SAMPLE = 32  # examples of the same shapes that are compared with themselves alone
_POINTS = 8  # ... and where those are kept until the later steps were seen


def parse_bytes(memory: int | str) -> int:
    """Return a budget in bytes from a number or from text like ``"2GiB"`` or ``"500M"``.

    Raises:
        InputError: It is not a positive size.
    """
    text = str(memory).lower() if isinstance(memory, (str, Real)) else ""
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", text)
    try:
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise InputError(f'memory is a size such as "2GiB" or "500MB", found {shown(memory)}.')
    return size


class Chunks:
    """Cuts the examples of a task into chunks.

    Args:
        task: The task.
        models: The bound copies.
        states: The run's states; sizes and independence are measured there.
        budget: Bytes.

    Attributes:
        took: By side, seconds that comparing examples alone and with others took.
        asked_of_all: By side, whether every example was compared.
        group: The processes that compare them.
    """

    def __init__(self, task: Task, models: Models, states: States, budget: int) -> None:
        self._task, self._models, self._budget = task, models, budget
        self._states = states
        self._shelf = Shelf(budget // _SHELF)
        self._independent: dict[tuple[str, tuple[ID, ...]], bool] = {}
        self._sizes: dict[tuple[str, ID], _Size] = {}
        self._settled = False
        self._decides = {"test": False, "train": False}
        self.took = {"test": 0.0, "train": 0.0}
        self.asked_of_all = {"test": False, "train": False}
        self.group: Group | Alone = Alone()

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
        self._settle(ids, side)
        points = _ENDS + between * (_BETWEEN + _POINTS * (kept > 0))
        size = self._size(ids, side, kept, points, self._states_at_once(ids, side))
        chunks = self._cut(ids, side, _even(len(ids), size if most is None else min(size, most)))
        if not self._are_independent(chunks, ids, side):
            return self._cut(ids, side, 1)
        for chunk in chunks:
            chunk.compares = self._decides[side] and len(chunk) > 1
        return chunks

    def block(self, ids: Sequence[ID]) -> tuple[int, int]:
        """Return how many training examples are taken together at most, and bytes kept of data."""
        size = _even(len(ids), min(self._size(ids, "train", 0, _ENDS, 1), BLOCK))
        one = self._some(ids[:1], "train")
        one.batches.of([0], None)
        return size, min(self._budget // _SHELF, len(ids) * one.batches.nbytes)

    def _cut(self, ids: Sequence[ID], side: str, size: int) -> list[Examples]:
        found = [self._some(ids[k : k + size], side) for k in range(0, len(ids), size)]
        for chunk in found:
            chunk.among = len(ids)
        return found

    def _some(self, ids: Sequence[ID], side: str) -> Examples:
        base = self._states.log.facts.data_seed
        seeds = None if base is None else Seeds(base, 0)
        return Examples(self._task, ids, side, self._models, self._shelf, seeds)

    def _states_at_once(self, ids: Sequence[ID], side: str) -> int:
        """Return at how many states examples are evaluated at once, at most; see ``slots``."""
        bound = self._models.test
        return 1 if side == "train" or is_large(bound, len(ids)) or refused(bound) else SLOTS

    def _size(self, ids: Sequence[ID], side: str, kept: int, points: int, states: int) -> int:
        if (side, ids[0]) not in self._sizes:
            one, where = self._some(ids[:1], side), f"{side} set, step 0"
            self._sizes[side, ids[0]] = _measured(one, self._states.at(0), where)
        visits = len(self._states.step(0).batch_ids)
        return self._sizes[side, ids[0]].together(self._budget, points, kept, states, visits)

    def _are_independent(self, chunks: list[Examples], ids: Sequence[ID], side: str) -> bool:
        """Ask of every example where lengths may differ, and so padding, else of a sample."""
        several = len(chunks[0]) > 1
        self.asked_of_all[side] = several and not are_alike(chunks)
        if several and not self.asked_of_all[side]:
            step = math.ceil(len(ids) / min(len(chunks[0]), _SAMPLE))
            chunks = [self._some(ids[::step], side)]
        elif not several:
            chunks = chunks[:1]  # is it random?
        asked = tuple(identity for chunk in chunks for identity in (*chunk.ids, ""))
        if (side, asked) not in self._independent:
            began = time.perf_counter()
            found, decides = independent(chunks, side, self._states, self.group)
            self._independent[side, asked] = found
            self._decides[side] |= decides
            self.took[side] += time.perf_counter() - began
        return self._independent[side, asked]

    def _settle(self, ids: Sequence[ID], side: str) -> None:
        """See that values are a function of what is loaded, of one example, once."""
        if self._settled or not ids:
            return
        one, last = self._some(ids[:1], side), self._states.last
        with suppress(NonFiniteError):  # of a run that diverges; who gets there is told
            settle(one, self._states.at(0), self._states.at(last), f"{side} set, step {last}")
        self._settled = True


def _even(count: int, size: int) -> int:
    """Return the size of chunks of about the same size, at most ``size``."""
    return math.ceil(count / math.ceil(count / size)) if count else 1


@dataclass(frozen=True)
class _Size:
    """Bytes of one example.

    Attributes:
        data: Its data.
        passed: The activations of a forward pass.
        found: Gradients kept of it.
        waiting: Those of them that are outer products.
        vector: A vector of the parameters' size.
        linear: Whether several states may be taken at once.
    """

    data: int
    passed: int
    found: int
    waiting: int
    vector: int
    linear: bool

    def together(self, budget: int, points: int, kept: int, states: int, visits: int) -> int:
        """Return how many examples to evaluate together so that a pass keeps to the budget.

        Half of it goes to the data, activations and gradients kept of one example and to its
        products with those of a step; the rest is the training side's.
        """
        waits = WAITING * self.waiting if kept and self.vector else 0
        of_state = 3 * self.passed + points * self.found + 8 * _PRODUCTS * visits
        each = 3 * self.data + of_state * (states if self.linear else 1)
        each += waits + kept * self.vector
        return max(1, budget // 2 // max(1, each))


def _measured(one: Examples, first: State, where: str) -> _Size:
    seen: dict[int, int] = {}
    own = one.storages()

    def count(tensor: torch.Tensor) -> torch.Tensor:
        seen.update({place: size for place, size in storages(tensor).items() if place not in own})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = one.gradients(first, where)
    waits = sum(t.nbytes for form in found.forms.values() if form.factors for t in form.tensors)
    vector = sum(max(4, w.element_size()) * w.numel() for w in first.parameters.values())
    linear, passed = unlike(found) is None, sum(seen.values())
    return _Size(one.batches.nbytes, passed, int(found.nbytes), waits, vector, linear)


def placed(chunks: list[Examples]) -> Iterator[tuple[slice, Examples]]:
    """Yield each chunk with its rows in the table."""
    start = 0
    for chunk in chunks:
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)
