"""On the rank that writes: the parts of the others, received while training goes on.

A thread takes what comes, whatever becomes of the log, so that no rank ever waits for this one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from tracer.distributed.link import Link
from tracer.distributed.part import Part, unpacked
from tracer.errors import TracingError
from tracer.records import MicroBatch, RandomState

END = b"end"  # a rank's last message
_READY = 8  # messages of each rank that there is a place for
_KEPT = 3  # random states of each rank, after its last steps


class Gathering:
    """The parts of the other ranks.

    Args:
        link: The way to them.
        random: Their generators before the first step, by rank.
        start: The first step.
        devices: This rank's CUDA devices.
        patience: How long a part is waited for.
    """

    def __init__(
        self,
        link: Link,
        random: dict[int, RandomState],
        start: int,
        devices: Sequence[int],
        patience: timedelta,
    ) -> None:
        self._link, self._devices, self._patience = link, tuple(devices), patience.total_seconds()
        self._changed = threading.Condition()
        self._parts: dict[int, deque[Part]] = {rank: deque() for rank in random}
        self._random = {rank: {start: state} for rank, state in random.items()}
        self._next = dict.fromkeys(random, start)  # step of the part to come
        self._lost: dict[int, str] = {}  # why there will be no more of a rank
        threading.Thread(target=self._live, name="tracer-ranks", daemon=True).start()

    def of(self, t: int) -> list[MicroBatch]:
        """Return the others' micro-batches of step ``t``, rank by rank; steps come in order.

        Raises:
            TracingError: A rank has ended before it said them, or does not say them in time.
        """
        return [micro for rank in self._parts for micro in self._part(rank, t).micro_batches]

    def random(self, steps: int) -> list[RandomState]:
        """Return the others' generators after so many steps, the last ones.

        Raises:
            TracingError: As ``of`` does.
        """
        found = []
        for rank, states in self._random.items():
            self._wait(rank, partial(states.__contains__, steps), steps - 1)
            found.append(states[steps])
        return found

    def _part(self, rank: int, t: int) -> Part:
        self._wait(rank, lambda: bool(self._parts[rank]), t)
        return self._parts[rank].popleft()

    def _wait(self, rank: int, there: Callable[[], bool], t: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: there() or rank in self._lost, self._patience)
            if there():
                return
            why = self._lost.get(rank, f"did not say within {self._patience:.0f} s")
        raise TracingError(
            f"rank {rank} {why} which examples it had in step {t}; the log ends before that step"
        )

    def _live(self) -> None:
        while rest := [rank for rank in self._parts if rank not in self._lost]:
            for rank in rest:
                self._receive(rank)

    def _receive(self, rank: int) -> None:
        why, part = "ended before it said", None
        try:
            data = self._link.receive(rank, ready=_READY)
            part = None if data == END else unpacked(data, rank, self._devices)
            if part is not None and part.index != self._next[rank]:
                why, part = f"took step {part.index} instead of saying", None
        except Exception as error:
            if not isinstance(error, RuntimeError):  # that one is of a connection that was closed
                why = f"sent what cannot be read ({type(error).__name__}: {error}) instead of"
        with self._changed:
            if part is None:
                self._lost[rank] = why
            else:
                self._take(rank, part)
            self._changed.notify_all()

    def _take(self, rank: int, part: Part) -> None:
        self._parts[rank].append(part)
        self._next[rank] = part.index + 1
        states = self._random[rank]
        states[part.index + 1] = part.after
        for old in sorted(states)[:-_KEPT]:
            del states[old]
