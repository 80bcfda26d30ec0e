"""A ring of rows: the training thread copies parameters into one, a writer thread empties it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tracer.layout import Field, Row, row_bytes, views

_BYTES = 64 << 20
_MOST = 64


class Slot:
    """One row's memory, pinned where parameters are on a CUDA device."""

    def __init__(self, layout: Sequence[Field], *, pinned: bool) -> None:
        memory = torch.zeros(row_bytes(layout), dtype=torch.uint8)
        self._memory = memory.pin_memory() if pinned else memory
        self._row: Row = self._memory.numpy()
        self._views = views(self._memory, layout)
        self._events: list[torch.cuda.Event] = []

    @torch.no_grad()
    def fill(self, parameters: Sequence[Tensor]) -> None:
        """Copy parameters in; on CUDA the copy is queued before whatever comes next."""
        if not parameters:
            return
        torch._foreach_copy_(self._views, list(parameters), non_blocking=True)
        devices = {p.device for p in parameters if p.is_cuda}
        self._events = [torch.cuda.current_stream(d).record_event() for d in devices]

    def row(self) -> Row:
        """Return the bytes, once the copy is over."""
        for event in self._events:
            event.synchronize()
        return self._row


class Ring:
    """Some slots, as many as fit in 64 MiB (at least two, at most 64).

    Args:
        layout: Of a row.
        pinned: Whether parameters come from a CUDA device.
    """

    def __init__(self, layout: Sequence[Field], *, pinned: bool) -> None:
        self._make: Callable[[], Slot] = lambda: Slot(layout, pinned=pinned)
        self._size = self._left = max(2, min(_MOST, _BYTES // max(1, row_bytes(layout))))
        self._free: list[Slot] = []  # used last, taken first: it is still in the cache
        self._given = threading.Semaphore(0)

    def is_short(self) -> bool:
        """Return whether half of the slots are in use."""
        return 2 * (self._left + len(self._free)) <= self._size

    def take(self) -> Slot:
        """Return a free slot; waits for the writer if there is none."""
        if self._given.acquire(blocking=False):
            return self._free.pop()
        if self._left:
            self._left -= 1
            return self._make()
        self._given.acquire()
        return self._free.pop()

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        self._free.append(slot)
        self._given.release()
