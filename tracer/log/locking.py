"""One writer for each log: a locked file beside it, and a register of this process's own.

HDF5 gives its own lock up in SWMR mode. The lock belongs to the open file, not to the process, so
that it outlives whoever opens and closes the lock file besides (a copy of the folder does);
forked processes close their copy of it, so that it ends with the writer. Where the file system
has no locks, the file itself is the lock, and the process that it names holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from tracer.errors import LogError
from tracer.hdf5 import superblock
from tracer.hdf5.opening import NO_LOCKS
from tracer.log.lock_file import holder, is_gone, lock_path, open_lock, this_process

_PATIENCE = 2.0  # seconds; a repair takes milliseconds
_GLANCE = 0.1  # likewise: a reader that looks whether somebody writes
_held: dict[str, WriterLock] = {}  # by lock file, in this process


class WriterLock:
    """Held for a writer's life.

    Args:
        log: The log.
        purpose: What other processes are told; empty for a repair, which is soon over.

    Attributes:
        path: The lock file.
        by_name: Whether the file system has no locks, so that the file itself is the lock.
        taken: How many steps the run has taken, with those that are not on file yet.

    Raises:
        LogError: Somebody else writes the log, or may do so under another name.
        OSError: The lock file cannot be written, or something else has its name.
    """

    def __init__(self, log: Path, purpose: str = "") -> None:
        self.path = lock_path(log)
        self._key = str(self.path)
        self.by_name, self.taken = False, 0
        if self._key in _held:
            raise LogError(
                f"{log} is being written in this process already; close that optimizer first."
            )
        require_own_name(log)
        descriptor = self._acquire()
        if descriptor is None:
            also = f", or remove {self.path} if it has ended" if self.by_name else ""
            raise LogError(
                f"{log} is being written by {holder(self.path) or 'another process'}; stop that "
                f"process{also}, or choose another path."
            )
        self._descriptor, _held[self._key] = descriptor, self
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (purpose or this_process() * self.by_name).encode(), 0)
        except BaseException:
            self.release()
            raise

    def _acquire(self) -> int | None:
        began = time.monotonic()
        while True:
            descriptor, made = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.by_name = error.errno in NO_LOCKS
                if self.by_name and made:
                    return descriptor
                os.close(descriptor)
                if self.by_name and is_gone(holder(self.path)):
                    self.path.unlink(missing_ok=True)
                    continue
                if not self.by_name and not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                if time.monotonic() - began > (_GLANCE if holder(self.path) else _PATIENCE):
                    return None
                time.sleep(0.01)  # somebody repairs it, looks at the lock or removes it
                continue
            if _is_file(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # removed between opening and locking

    def _open(self) -> tuple[int, bool]:
        """Open the lock file, and return whether it was made now."""
        try:
            return open_lock(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
        except FileExistsError:
            return open_lock(self.path, os.O_RDWR | os.O_CREAT), False

    def release(self) -> None:
        """Give the lock up and remove its file; a forked copy has none."""
        if self._descriptor < 0 or _held.get(self._key) is not self:
            return
        del _held[self._key]
        with contextlib.suppress(OSError):  # a folder gone or read-only: it ends all the same
            if _is_file(self._descriptor, self.path):
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def forget(self) -> None:
        """Close a forked process's copy: a lock ends with the process that took it."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1


def is_being_written(log: Path) -> bool:
    """Return whether a live process holds a log's lock."""
    path = lock_path(log)
    if str(path) in _held:
        return True
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = open_lock(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            text = holder(path)
            if error.errno in NO_LOCKS and is_gone(text):
                return False
            if text or time.monotonic() > until:
                return True
        else:
            return False
        finally:
            os.close(descriptor)
        time.sleep(0.01)


def writer_of(log: Path) -> tuple[str, int | None]:
    """Return who writes a log, and how many steps the run has taken if that is known."""
    path = lock_path(log)
    if (lock := _held.get(str(path))) is not None:
        return "this process", lock.taken
    return holder(path) or "another process", None


def require_own_name(log: Path) -> None:
    """Raise LogError if a log may be being written under another name, beside which its lock is."""
    path = lock_path(log)
    target = path.with_name(path.name.removesuffix(".lock"))
    try:
        names = target.stat().st_nlink
    except OSError:
        return  # there is no log yet
    if names == 1 or (
        path.is_file() and not path.is_symlink()
    ):  # a writer that was killed left its lock file here
        return
    block = superblock.read(target)
    if block is not None and superblock.is_marked_open(block):
        raise LogError(
            f"{log} is marked as open and has {names} names (hard links): its writer may be at "
            "work under another one; open it by the name it was written under, or copy it and "
            "open the copy."
        )


def _forget_in_child() -> None:
    for lock in _held.values():
        lock.forget()
    _held.clear()


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


os.register_at_fork(after_in_child=_forget_in_child)
