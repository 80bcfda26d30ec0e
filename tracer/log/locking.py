"""One writer for each log: a locked file beside it, and a register of this process's own.

HDF5 gives its own lock up in SWMR mode. The lock belongs to the open file, not to the process, so
that it outlives whoever opens and closes the lock file besides (a copy of the folder does);
forked processes close their copy of it, so that it ends with the writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from tracer.errors import LogError
from tracer.hdf5 import superblock

_PATIENCE = 2.0  # seconds; a repair takes milliseconds
_GLANCE = 0.1  # likewise: a reader that looks whether somebody writes
_held: dict[str, int] = {}  # lock file -> descriptor that holds it, in this process


def lock_path(log: Path) -> Path:
    """Return the file whose lock says that a log is being written, beside the log itself."""
    real = Path(os.path.realpath(log))
    return real.with_name(real.name + ".lock")


class WriterLock:
    """Held for a writer's life.

    Args:
        log: The log.
        purpose: What other processes are told; empty for a repair, which is soon over.

    Raises:
        LogError: Somebody else writes the log, or may do so under another name.
        OSError: The lock file cannot be written.
    """

    def __init__(self, log: Path, purpose: str = "") -> None:
        self._path = lock_path(log)
        self._key = str(self._path)
        if self._key in _held:
            raise LogError(
                f"{log} is being written in this process already; close that optimizer first."
            )
        require_own_name(log)
        descriptor = self._acquire()
        if descriptor is None:
            raise LogError(
                f"{log} is being written by {_holder(self._path)}; stop that process, or choose "
                "another path."
            )
        self._descriptor = _held[self._key] = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, purpose.encode(), 0)
        except BaseException:
            self.release()
            raise

    def _acquire(self) -> int | None:
        began = time.monotonic()
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                if time.monotonic() - began > (_GLANCE if _text(self._path) else _PATIENCE):
                    return None
                time.sleep(0.01)  # somebody repairs it, looks at the lock or removes it
                continue
            if _is_file(descriptor, self._path):
                return descriptor
            os.close(descriptor)  # removed between opening and locking

    def release(self) -> None:
        """Give the lock up and remove its file; a forked copy has none."""
        if self._descriptor < 0 or _held.get(self._key) != self._descriptor:
            return
        del _held[self._key]
        with contextlib.suppress(OSError):  # a folder gone or read-only: it ends all the same
            self._path.unlink(missing_ok=True)
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
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            if _text(path) or time.monotonic() > until:
                return True
        else:
            return False
        finally:
            os.close(descriptor)
        time.sleep(0.01)


def require_own_name(log: Path) -> None:
    """Raise LogError if a log may be being written under another name, beside which its lock is."""
    path = lock_path(log)
    target = path.with_name(path.name.removesuffix(".lock"))
    try:
        names = target.stat().st_nlink
    except OSError:
        return  # there is no log yet
    if names == 1 or path.exists():  # a writer that was killed left its lock file here
        return
    block = superblock.read(target)
    if block is not None and superblock.is_marked_open(block):
        raise LogError(
            f"{log} is marked as open and has {names} names (hard links): its writer may be at "
            "work under another one; open it by the name it was written under, or copy it and "
            "open the copy."
        )


def _forget_in_child() -> None:
    """Close a forked process's copies: a lock ends with the process that took it."""
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _holder(path: Path) -> str:
    return _text(path) or "another process"


os.register_at_fork(after_in_child=_forget_in_child)
