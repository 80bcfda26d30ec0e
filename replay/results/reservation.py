"""The place of a result while it is computed: whoever comes second is told before the work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tracer.errors import InputError

_OURS = b"tracin-replay "  # how a lock file begins
_LONGEST = 200  # bytes of it
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system has none
_ELSEWHERE = "Choose another path for this one: --out other.h5."
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK)  # a link, a folder, a socket


@contextmanager
def reserved(target: Path, instead: str = _ELSEWHERE) -> Iterator[None]:
    """Hold the place of a result until the work ends, in whatever way.

    A lock file stands beside it. The lock belongs to the process: a killed one has none, and the
    file that it left is taken over.

    Args:
        target: The place.
        instead: What else whoever comes second can do than wait.

    Raises:
        InputError: Another program computes a result for the same place.
    """
    path = target.with_name(f"{target.name}.lock")
    descriptor = _acquired(path, target, instead)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, target: Path, instead: str) -> int:
    """Open and lock the lock file; nothing is written before it is known to be one."""
    while True:
        descriptor = _opened(path, target)
        try:
            _lock(descriptor, path, target, instead)
            if _is_file(descriptor, path):
                began = time.strftime("%Y-%m-%d %H:%M:%S")
                holder = f"process {os.getpid()} on {socket.gethostname()} since {began}"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (_OURS + holder.encode())[:_LONGEST], 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed meanwhile: who held it is done


def _opened(path: Path, target: Path) -> int:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _foreign(path) from error
        raise InputError(
            f"the result {target} cannot be written: {error.strerror}; choose another path."
        ) from error


def _lock(descriptor: int, path: Path, target: Path, instead: str) -> None:
    """Lock a file of ours, or say whose it is."""
    status, text = os.fstat(descriptor), b""
    if stat.S_ISREG(status.st_mode):
        text = os.pread(descriptor, _LONGEST + 1, 0)
    own = len(text) <= _LONGEST and (text.startswith(_OURS) or not text)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not own:
        raise _foreign(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = text.removeprefix(_OURS).decode("ascii", errors="replace")
        who = "".join(filter(str.isprintable, holder)) or "it has just begun"
        raise InputError(
            f"another program computes the result {target}: {who}.\n"
            f"1. Wait until it is done.\n2. {instead}"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} has the name of the result's lock, and is none of this program.\n"
        "1. Move it away.\n"
        "2. Choose another path for the result: --out other.h5."
    )
