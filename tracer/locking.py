"""One writer for each log: a locked file beside it, and a register of this process's own.

HDF5 gives its own lock up in SWMR mode. POSIX record locks die with the process, whatever children
it leaves behind; but a process does not conflict with itself, hence the register.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from tracer.errors import LogError

_PATIENCE = 2.0  # seconds; a repair takes milliseconds
_held: dict[str, int] = {}  # lock file -> process that holds it


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
        LogError: Somebody else writes the log.
        OSError: The lock file cannot be written.
    """

    def __init__(self, log: Path, purpose: str = "") -> None:
        self._path = lock_path(log)
        self._key = str(self._path)
        self._descriptor = -1
        if _held.get(self._key) == os.getpid():
            raise LogError(
                f"{log} is being written in this process already; close that optimizer first."
            )
        if not self._acquire():
            raise LogError(
                f"{log} is being written by {_holder(self._path)}; stop that process, or choose "
                "another path."
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, purpose.encode(), 0)
        _held[self._key] = os.getpid()

    def _acquire(self) -> bool:
        until = time.monotonic() + _PATIENCE
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                if _text(self._path) or time.monotonic() > until:
                    return False
                time.sleep(0.01)  # somebody repairs it, or removes the lock
                continue
            if _is_file(descriptor, self._path):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # removed between opening and locking

    def release(self) -> None:
        """Give the lock up and remove its file; a forked copy leaves both alone."""
        if self._descriptor < 0 or _held.get(self._key) != os.getpid():
            return
        del _held[self._key]
        with contextlib.suppress(OSError):  # a folder gone or read-only: it ends all the same
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def is_being_written(log: Path) -> bool:
    """Return whether a live process holds a log's lock."""
    path = lock_path(log)
    if _held.get(str(path)) == os.getpid():
        return True
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            if _text(path) or time.monotonic() > until:
                return True
        else:
            return False
        finally:
            os.close(descriptor)
        time.sleep(0.01)


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
