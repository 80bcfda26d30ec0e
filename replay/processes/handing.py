"""Work whose results several processes of a host need, each piece done once.

The pieces are a sequence, which all go along. A process whose next result another one still works
on does a later piece meanwhile. Results go by files without a name: they end with whoever wrote
them, and are found as long as it has them open.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Generic, Protocol, TypeVar

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from replay.processes.store import Store

T = TypeVar("T")
_LOOK, _SELDOM = 2e-3, 2e-2  # seconds between looks at what others have done: at first, at most
_FILES, _OWN = 128, 2  # not read yet; results found ahead that stay here: at most
OPEN = Path("/proc/self/fd")  # files that a process has open, where others find them
_PATIENCE = 600.0  # ... until who reads nothing is no longer waited for


class Work(Protocol[T]):
    """Pieces of work."""

    def do(self, k: int) -> T:
        """Do a piece."""

    def is_ready(self, k: int) -> bool:
        """Return whether a piece can be done before it is its turn."""

    def packed(self, found: T) -> Any:
        """Return a result as tensors, numbers and texts in lists and dictionaries.

        None stays with whoever has it: others do the piece, too.
        """

    def unpacked(self, packed: Any) -> T:
        """Return the result."""


class Handing(Generic[T]):
    """A sequence of results that processes hand on to each other.

    Args:
        work: What there is to do, the same in all processes.
        length: How many pieces.
        store: The job's.
        name: Of the sequence, as all that share it call it.
        others: How many others share it.
        room: Bytes of results that others have not read yet.
        folder: Where they are.
    """

    def __init__(
        self,
        work: Work[T],
        length: int,
        store: Store,
        name: str,
        others: int,
        room: int,
        folder: Path,
    ) -> None:
        self._work, self._length, self._store, self._name = work, length, store, name
        self._others, self._room, self._folder = others, room, folder
        self._front = 0  # the first piece that nobody may have begun
        self._since = time.monotonic()  # anything was read
        self._pause = _LOOK
        self._unread: dict[int, tuple[IO[bytes], int]] = {}  # with their sizes
        self._early: dict[int, T] = {}  # done here, maybe before it was their turn

    def get(self, n: int) -> T:
        """Return result n; ``n`` ascends by one."""
        while n not in self._early and not self._store.has(self._told(n)):
            self._go_on(n)
        found = self._early.pop(n) if n in self._early else self._read(n)
        return self._work.do(n) if found is None else found

    def close(self) -> None:
        """Wait until all is read that others are thought to need."""
        while self._unread and not self._is_left():
            self._held()
            time.sleep(_SELDOM)
        for file, _ in self._unread.values():
            file.close()
        self._unread = {}

    def _go_on(self, n: int) -> None:
        """Do a piece that is free, the n-th or a later one, or wait a moment."""
        k = self._front
        free = k < self._length and (self._has_room() or (k == n and self._is_left()))
        if not free or not (k == n or (self._goes_ahead() and self._work.is_ready(k))):
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _SELDOM)
            return
        self._front, self._pause = k + 1, _LOOK
        if self._store.add(f"{self._name}/{k}/begun", 1) == 1:
            found = self._early[k] = self._work.do(k)
            self._store.set(self._told(k), self._written(k, found))

    def _written(self, k: int, found: T) -> str:
        """Write a result; return where others find it, or nothing."""
        packed = None if self._is_left() else self._work.packed(found)
        if packed is None:
            return ""
        try:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (open until it was read)
        except OSError:  # nothing can be written there: others have to do it, too
            return ""
        try:
            with _unchecked():
                torch.save({"of": self._told(k), "found": packed}, file)
            file.flush()
        except (OSError, RuntimeError):  # the disk is full
            file.close()
            return ""
        self._since = self._since if self._unread else time.monotonic()
        self._unread[k] = file, file.tell()
        return _place(file)

    def _read(self, n: int) -> T | None:
        """Return a result that another process has found; None if it cannot be read."""
        place = self._store.get(self._told(n))
        if not place:
            return None
        try:
            return self._unpacked(n, place)
        finally:  # whoever has it need not keep it, whatever came of it
            self._store.add(self._counted(n), 1)

    def _unpacked(self, n: int, place: str) -> T | None:
        try:
            with Path(place).open("rb") as file:  # one that stays, whatever becomes of the other's
                read = torch.load(_place(file), mmap=True, weights_only=True)
        except (OSError, RuntimeError, UnpicklingError):  # that process has ended, for example
            return None
        return self._work.unpacked(read["found"]) if read["of"] == self._told(n) else None

    def _has_room(self) -> bool:
        """Return whether more may be written: processes may have some thousand open files."""
        return self._held() < self._room and len(self._unread) < _FILES

    def _goes_ahead(self) -> bool:
        """Return whether few results wait here that are in no file: nothing else bounds them."""
        return len(self._early.keys() - self._unread.keys()) < _OWN

    def _held(self) -> int:
        """Close what all have read; return the size of the rest."""
        for k, (file, _) in [*self._unread.items()]:
            if self._store.add(self._counted(k), 0) >= self._others:
                file.close()
                del self._unread[k]
                self._since = time.monotonic()
        return sum(size for _, size in self._unread.values())

    def _is_left(self) -> bool:
        """Return whether nobody seems to read any more what this process has found."""
        return bool(self._unread) and time.monotonic() - self._since > _PATIENCE

    def _told(self, k: int) -> str:
        return f"{self._name}/{k}"

    def _counted(self, k: int) -> str:
        return f"{self._name}/{k}/read"


@contextmanager
def _unchecked() -> Iterator[None]:
    """Write no checksums, which take half of the time: the file does not outlive the process."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _place(file: IO[bytes]) -> str:
    """Return where every process of this host finds an open file."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"
