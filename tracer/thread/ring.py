"""A ring of rows: the training thread copies parameters into one, a writer thread empties it.

The rows lie one after the other in memory and are used in turn, so that those of successive steps
can be written in one call; no more of them than the writer needs.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from tracer.codec.layout import Field, Row, row_bytes, views

_BYTES = 64 << 20
_MOST = 64


class Slot:
    """One row of the ring.

    Args:
        memory: Its bytes, uint8.
        layout: Of a row.
    """

    def __init__(self, memory: Tensor, layout: Sequence[Field]) -> None:
        self._row: Row = memory.numpy()[: row_bytes(layout)]
        self._views = views(memory, layout)
        self._events: list[torch.cuda.Event] = []

    def fill(self, parameters: list[Tensor]) -> None:
        """Copy parameters in; on CUDA the copy is queued before whatever comes next.

        Inside ``torch.no_grad()``.
        """
        if not parameters:
            return
        torch._foreach_copy_(self._views, parameters, non_blocking=True)
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
        pinned: Whether parameters come from a CUDA device, and memory is pinned for them.

    Attributes:
        size: How many slots.
    """

    def __init__(self, layout: Sequence[Field], *, pinned: bool) -> None:
        self._layout = layout
        size = max((field.dtype.itemsize for field in layout), default=1)
        width = -(-row_bytes(layout) // size) * size  # each row aligned as its tensors are
        self.size = max(2, min(_MOST, _BYTES // max(1, width)))
        shape = (self.size, width)
        # numpy's zeros take no memory before they are used
        self._memory = (
            torch.zeros(shape, dtype=torch.uint8, device="cpu", pin_memory=True)
            if pinned
            else torch.from_numpy(np.zeros(shape, np.uint8))
        )
        self._made = 0
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()

    def is_short(self) -> bool:
        """Return whether half of the slots are in use."""
        return 2 * (self.size - self._made + self._free.qsize()) <= self.size

    def take(self) -> Slot:
        """Return the next slot; waits for the writer if all are in use.

        A new one only where none is free: its pages are not there yet, nor in any cache.
        """
        with suppress(queue.Empty):
            return self._free.get(block=self._made == self.size)
        self._made += 1
        return Slot(self._memory[self._made - 1], self._layout)

    def give(self, slot: Slot) -> None:
        """Take a slot back; they come in the order that they were taken in."""
        self._free.put(slot)
