"""The file beside a log that says who writes it.

Archives carry links, and others use such names too: what is no regular file is not opened, and
what no writer has written is neither changed nor removed.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path

_TEXT = re.compile(r"process (\d+) on (\S+)")
_MOST = 400  # bytes of it
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class ForeignFileError(OSError):
    """What stands beside a log is not a writer's."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EEXIST, f"{path.name} beside it is {what}, not a writer's lock")


def lock_path(log: Path) -> Path:
    """Return the file whose lock says that a log is being written, beside the log itself."""
    real = Path(os.path.realpath(log))
    return real.with_name(real.name + ".lock")


def this_process() -> str:
    """Return what the lock file of a writer in this process says."""
    return f"process {os.getpid()} on {socket.gethostname().replace(' ', '_') or 'localhost'}"


def open_lock(path: Path, flags: int) -> int:
    """Open a lock file that is there, or that is made now.

    Raises:
        ForeignFileError: Something else has its name.
        OSError: It cannot be opened.
    """
    try:
        _require_regular(path, path.lstat())
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | safe, 0o644)
    try:
        _require_regular(path, os.fstat(descriptor))
        if (found := _read(descriptor)) and not _TEXT.fullmatch(found):
            raise ForeignFileError(path, "a file of something else")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def holder(path: Path) -> str:
    """Return what a lock file says, empty if it says nothing or is not there."""
    try:
        descriptor = open_lock(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def is_gone(text: str) -> bool:
    """Return whether the process that a lock file names is known to have ended."""
    found = _TEXT.fullmatch(text)
    if found is None or text.partition(" on ")[2] != this_process().partition(" on ")[2]:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _read(descriptor: int) -> str:
    return os.pread(descriptor, _MOST, 0).decode(errors="replace").strip()


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFileError(path, _KINDS.get(stat.S_IFMT(found.st_mode), "a device"))
