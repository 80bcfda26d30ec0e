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
        self._part = ""
        self._worked: set[str] = set()
        self._told: dict[str, Any] = {}

    @property
    def pieces(self) -> int:
        """How many pieces of work there were."""
        return len(self._worked)

    def claims(self, part: str) -> bool:
        """Note which part comes next; all are done here."""
        self._part = part
        return True

    def shows(self, advance: Callable[[], None]) -> Done:
        """Return what notes that something was done of the part that was claimed last."""

        def done(pieces: int = 1) -> None:
            self._worked.add(self._part)

        return done

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
