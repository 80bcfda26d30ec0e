"""How many threads a replay computes with: as told, or the faster of one and torch's number.

Small models are slower with several threads, and far slower where other programs work beside. The
number decides in which order sums are added up, and so the last bits of results: it is chosen once
for a replay, each result says it, and whoever gives the same number has the same bits.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

AS_FOUND = "torch's number"
_ROUNDS = 3
_ENOUGH = 0.1  # seconds of timing after which no round is begun


class Threads:
    """The number of threads of one replay.

    Args:
        asked: What the user asked for; None lets it be chosen.
        why: Where that comes from.

    Attributes:
        why: Where the number comes from that scores are computed with, as results say it.
    """

    def __init__(self, asked: int | None = None, why: str = "as asked for") -> None:
        self._asked = self._number = asked
        self.why = AS_FOUND if asked is None else why

    @property
    def number(self) -> int:
        """How many scores are computed with."""
        return self._number or torch.get_num_threads()

    def scoring(self) -> AbstractContextManager[None]:
        """Compute scores, with the number that was asked for or chosen."""
        return with_threads(self.number)

    def again(self) -> AbstractContextManager[None]:
        """Take steps again, with what was asked for or is found: a run's bits depend on it."""
        return with_threads(self._asked or torch.get_num_threads())

    def keep(self, number: int) -> None:
        """Take the number of an earlier part of the work, or of another process that does a part.

        One that was given stays.
        """
        if self._asked is not None:
            return
        if number != torch.get_num_threads():
            self.why = "as the job began"
        self._asked = self._number = number

    def choose(self, trial: Callable[[], object], first: int) -> None:
        """Let scores take the faster of one thread and the program's number, once.

        Args:
            trial: The beginning of the work. An error of it is left to the work itself.
            first: The likelier number, with which gradients are proven.
        """
        found = torch.get_num_threads()
        if self._asked is not None or self._number is not None or found == 1:
            return
        seconds = self._timed(trial, sorted((1, found), key=lambda number: number != first))
        self._number = found
        if seconds:
            self._number = min((1, found), key=lambda number: statistics.median(seconds[number]))
            self.why = f"the faster of 1 and {found}"

    def _timed(self, trial: Callable[[], object], numbers: list[int]) -> dict[int, list[float]]:
        """Return how long the trial takes by number of threads, in turns; nothing if it fails."""
        seconds: dict[int, list[float]] = {number: [] for number in numbers}
        self._number = numbers[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the work itself says it
            try:
                trial()  # which also proves gradients
                began = time.perf_counter()
                for _ in range(_ROUNDS):
                    for self._number in seconds:
                        start = time.perf_counter()
                        trial()
                        seconds[self._number].append(time.perf_counter() - start)
                    if time.perf_counter() - began > _ENOUGH:
                        break
            except Exception:
                return {}
        return seconds


@contextmanager
def with_threads(number: int) -> Iterator[None]:
    """Let torch have so many threads; leave its number as found."""
    found = torch.get_num_threads()
    if number == found:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(found)
