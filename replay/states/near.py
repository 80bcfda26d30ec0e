"""What was read or computed of a run, kept while what is asked for next is near."""

from __future__ import annotations

from typing import Generic, TypeVar

from replay.evaluate.slots import LARGEST, SLOTS
from tracer.log.read.run_log import RunLog

T = TypeVar("T")


class Near(Generic[T]):
    """Things by number, as many of them as are taken in one pass: of a large model, neighbours.

    Args:
        log: The run.
    """

    def __init__(self, log: RunLog) -> None:
        size = sum(shape.numel() for shape, _ in log.parameter_layout.values())
        self._reach = SLOTS if size <= LARGEST else 1
        self._kept: dict[int, T] = {}

    def get(self, t: int) -> T | None:
        """Return what is kept of a number."""
        return self._kept.get(t)

    def put(self, t: int, found: T) -> T:
        """Keep something, and of the rest what is near."""
        if len(self._kept) > self._reach:
            near = {k: one for k, one in self._kept.items() if abs(k - t) <= self._reach}
            self._kept = near
        self._kept[t] = found
        return found
