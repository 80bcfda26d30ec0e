"""A job of several processes that this one plays alone, to see how long its work takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from replay.processes.alone import Done
from replay.processes.group import Group


class Rehearsal(Group):
    """Does in turn what all processes of a job do; nobody is told, nobody waited for.

    Args:
        size: Among how many the work is divided.

    Attributes:
        pieces: How many pieces of work there were.
        done: When the last one was done, by ``time.perf_counter``; the result comes after it.
    """

    def __init__(self, size: int) -> None:
        self.rank, self.size, self.done = 0, size, 0.0
        self._taken: set[str] = set()
        self._told: dict[str, Any] = {}

    @property
    def pieces(self) -> int:
        """How many pieces of work there were."""
        return len(self._taken)

    def claims(self, part: str) -> bool:
        """Return whether a part was not done yet."""
        new = part not in self._taken
        self._taken.add(part)
        return new

    def shows(self, advance: Callable[[], None]) -> Done:
        """Return what shows nothing."""
        return lambda pieces=1: None

    def ended(self, look: Done) -> bool:
        """Note the time; the result is made here, too."""
        self.done = time.perf_counter()
        return callable(look)

    def divided(self, name: str, jobs: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        """Yield what jobs give, each done when it is asked for."""
        yield from (job() for job in jobs)

    def tell(self, name: str, value: Any) -> None:
        """Keep a value."""
        self._told[name] = value

    def told(self, name: str) -> Any:
        """Return what was told under a name: by this process, as there is no other."""
        return self._told[name]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Do something."""
        yield
