"""Opening a run log's file, also a killed writer's, or saying why it cannot be."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import h5py

from tracer.errors import LogError
from tracer.hdf5 import superblock
from tracer.hdf5.patches import DamagedError
from tracer.hdf5.repair import RepairedView, repair
from tracer.log import metadata, schema
from tracer.log.locking import WriterLock, is_being_written, require_own_name

_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
)


@dataclass(frozen=True)
class OpenFile:
    """A log's open file.

    Attributes:
        file: The file.
        live: Whether a writer is at work on it.
        repair: What was done to open it after its writer was killed, if anything.
    """

    file: h5py.File
    live: bool
    repair: str


def open_file(path: Path) -> OpenFile:
    """Open a run log's file, also one that is being written or whose writer was killed.

    A killed writer's file is repaired in place, under the writer's lock; where that may not be
    written, it is read as if it were repaired.

    Raises:
        LogError: It is missing, unreadable, no run log, or of a newer format.
    """
    opened = _open(path)
    try:
        check_format(path, opened.file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        opened.file.close()
        raise LogError(f"{path} is a damaged run log: {error}; restore it from a copy.") from error
    except BaseException:
        opened.file.close()
        raise
    return opened


def check_format(path: Path, file: h5py.File) -> None:
    """Raise LogError unless a file is a run log of a format that this version reads."""
    found = metadata.read(file)
    if found.get("format") != schema.FORMAT:
        raise LogError(
            f"{path} is an HDF5 file but not a run log: tracer.TracingOptimizer writes those. A "
            "result is read with Influence.load or SelfInfluence.load."
        )
    version = found.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise LogError(f"{path} is a damaged run log: its format version is {version!r}.")
    if version > schema.FORMAT_VERSION:
        raise LogError(
            f"{path} has log format {version}, this version reads up to "
            f"{schema.FORMAT_VERSION}; upgrade tracin-replay."
        )
    if metadata.CHECKSUM not in found:
        raise LogError(
            f"{path} was written before the first release, in a format that is read no more; trace "
            "the run again, or read it with the version that wrote it."
        )
    if not metadata.is_sealed(file):
        raise LogError(
            f"{path} is a damaged run log: its attributes do not match their checksum; restore it "
            "from a copy."
        )


def _open(path: Path) -> OpenFile:
    try:
        if not path.exists():
            raise LogError(f"there is no log {path}; check the path.")
        if not path.is_file():
            raise LogError(f"{path} is not a file; expected a run log such as run.h5.")
        if not h5py.is_hdf5(path):
            raise LogError(f"{path} is not an HDF5 file; expected a run log written by tracer.")
        block = superblock.read(path)
        if block is None or not superblock.is_marked_open(block):
            return OpenFile(h5py.File(path, "r"), live=False, repair="")
        return _open_marked(path)
    except (OSError, RuntimeError) as error:
        raise LogError(f"{path} cannot be read: {error}.") from error


def _open_marked(path: Path) -> OpenFile:
    """Open a file that its writer has open or left so."""
    if is_being_written(path):
        file = h5py.File(path, "r", libver="latest", swmr=True)
        return OpenFile(file, live=True, repair="")
    try:
        require_writable(path)
        lock = WriterLock(path)
        try:
            torn = " and ".join(repair(path, schema.TABLES))
        finally:
            lock.release()
        done = "its superblock was repaired"
        done += f", the torn index of {torn} too" if torn else ""
        return OpenFile(h5py.File(path, "r"), live=False, repair=done)
    except (OSError, DamagedError) as error:
        if isinstance(error, OSError) and error.errno not in _UNWRITABLE:
            raise
        require_own_name(path)
        file = h5py.File(RepairedView(path, schema.TABLES), "r")
        why = error.strerror if isinstance(error, OSError) else error
        done = f"it is read as if repaired, not changed ({why})"
        return OpenFile(file, live=False, repair=done)


def require_writable(path: Path) -> None:
    """Raise PermissionError for a file without write permission, also for root."""
    if not path.stat().st_mode & 0o222:
        raise PermissionError(errno.EACCES, "the file is read-only", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
