"""Batches that leave their IDs behind where accelerate sends them to the device.

Accelerate fetches one batch ahead, and rebuilds a loader to skip batches. The batch that the loop
gets is always the one that was sent last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any
from weakref import WeakMethod

from tracer.errors import TracingError
from tracer.integrations.carried_ids import Carried, check_rows
from tracer.records import ID

_NUMBERS = count()
_TOLD: dict[int, WeakMethod[Callable[[Carried], None]]] = {}  # what worker processes have not


class Labelled:
    """Makes batches that tell a tracing when they are sent; a class, so that workers pickle it.

    Args:
        told: A method that gets the batch on the device, with its IDs.
    """

    def __init__(self, told: Callable[[Carried], None]) -> None:
        self._number = next(_NUMBERS)
        _TOLD[self._number] = WeakMethod(told)

    def __call__(self, ids: list[ID], batch: Any) -> Carried:
        """Join IDs and batch."""
        return _OnItsWay(ids, batch, self._number)

    def __reduce__(self) -> tuple[Any, ...]:
        return _labelled, (self._number,)


class _OnItsWay(Carried):
    def __init__(self, ids: list[ID], batch: Any, number: int) -> None:
        super().__init__(ids, batch)
        self._number = number

    def pin_memory(self, device: Any = None) -> Carried:
        return _OnItsWay(self.ids, super().pin_memory(device).batch, self._number)

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        """Return the batch on the device, as ``send_to_device`` asks."""
        from accelerate.utils import send_to_device

        sent = send_to_device(self.batch, device, non_blocking=non_blocking)
        if isinstance(sent, Mapping):
            check_rows(sent, self.ids)
        told = _TOLD[self._number]()
        if told is not None:
            told(Carried(self.ids, sent))
        return sent

    def __getitem__(self, key: Any) -> Any:
        raise TracingError(
            "a batch still has its IDs: its loader was not prepared.\n"
            "1. Give the loader to accelerator.prepare, and go through what that returns."
        )


def _labelled(number: int) -> Labelled:
    found = Labelled.__new__(Labelled)
    found._number = number
    return found
