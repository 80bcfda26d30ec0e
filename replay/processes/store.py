"""What the processes of a job write for each other, and whether they are still alive.

torchrun's key-value store keeps it. A piece of work may take hours, so that nobody is missed for
being silent about it: every process gives a sign of life each minute, whatever it does.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from replay.processes.meeting import met
from tracer.errors import InputError

_PATIENCE = timedelta(minutes=30)  # without a sign of the others
_BEAT, _LOOK = 60.0, 0.05  # seconds between signs, and between looks at what others wrote
_ALIVE = "alive"


class Store:
    """A key-value store that all processes of a job reach.

    Args:
        kept: What keeps it, one of ``torch.distributed``'s stores.
        name: Of the part of it that these processes share.
    """

    def __init__(self, kept: Any, name: str = "job") -> None:
        self._kept, self._name, self._beats = kept, name, 0
        self._ended = threading.Event()

    @classmethod
    def of_job(cls, rank: int, size: int) -> Store:
        """Return the store of the job that the environment names."""
        from torch.distributed.rendezvous import rendezvous

        with _reached():
            kept = next(rendezvous("env://", timeout=_PATIENCE))[0]
            store = cls(kept, met(kept, rank, size, cls(kept).missed()))
        store.begin()
        return store

    def begin(self) -> None:
        """Begin to give signs of life."""
        threading.Thread(target=self._beat, daemon=True).start()

    def end(self) -> None:
        """Give no more signs."""
        self._ended.set()

    def add(self, name: str, number: int) -> int:
        """Add to a number, which begins at 0, and return it."""
        with _reached():
            return int(self._kept.add(self._key(name), number))

    def set(self, name: str, text: str) -> None:
        """Write a text."""
        with _reached():
            self._kept.set(self._key(name), text)

    def get(self, name: str) -> str:
        """Return a text, as soon as it is written."""
        self.wait([name])
        with _reached():
            return str(self._kept.get(self._key(name)).decode())

    def has(self, name: str) -> bool:
        """Return whether a text is written."""
        return self._written([name])

    def wait(self, names: Sequence[str]) -> None:
        """Wait until all texts are written.

        Raises:
            InputError: The other processes gave no sign of life for half an hour.
        """
        missed = self.missed()
        while not self._written(names):  # a store's own wait says each time that it ended
            time.sleep(_LOOK)
            missed()

    def missed(self) -> Callable[[], None]:
        """Return what raises InputError once no other process gave a sign for half an hour."""
        known, since = -1, time.monotonic()

        def look() -> None:
            nonlocal known, since
            now = self.add(_ALIVE, 0) - self._beats
            if now != known:
                known, since = now, time.monotonic()
            if time.monotonic() - since > _PATIENCE.total_seconds():
                raise InputError(
                    "none of the job's other processes gave a sign of life for 30 minutes.\n"
                    "1. End the job, and start the same again: what is finished is on file.\n"
                    "2. Start it with torchrun, which ends it when one of its processes dies."
                )

        return look

    def _written(self, names: Sequence[str]) -> bool:
        with _reached():
            return bool(self._kept.check([self._key(name) for name in names]))

    def _key(self, name: str) -> str:
        return f"{self._name}/{name}"

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            try:
                self.add(_ALIVE, 1)
            except InputError:  # said by what needs the store
                return
            self._beats += 1


@contextmanager
def _reached() -> Iterator[None]:
    """Raise InputError where what keeps the store is gone, and with it what started the job."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise InputError(
            f"on {socket.gethostname()}: what started this job is gone, or cannot be reached any "
            f"more ({str(error).splitlines()[0][:100]}).\n"
            "1. Start the same again: what is finished is on file."
        ) from error
