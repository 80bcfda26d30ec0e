"""Opening a run log's file, also a killed writer's, or saying why it cannot be."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py

from tracer.errors import LogError
from tracer.hdf5 import superblock
from tracer.hdf5.opening import open_hdf5
from tracer.hdf5.patches import DamagedError
from tracer.hdf5.repair import RepairedView, repair
from tracer.log import metadata, schema
from tracer.log.locking import WriterLock, is_being_written, require_own_name

_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EEXIST),
)
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A log's open file.

    Attributes:
        file: The file.
        live: Whether a writer is at work on it.
        repair: What was done to open it after its writer was killed, if anything.
        stat: What the file was when it was opened.
        attributes: Those of its root, checked.
    """

    file: h5py.File
    live: bool
    repair: str
    stat: os.stat_result
    attributes: dict[str, Any] = field(default_factory=dict)


_open_files: weakref.WeakSet[OpenFile] = weakref.WeakSet()


def is_open_here(path: Path) -> bool:
    """Return whether this process has a log open for reading."""
    found = path.stat()

    def is_read() -> bool:
        return any(f.file and os.path.samestat(f.stat, found) for f in list(_open_files))

    if is_read():
        gc.collect()  # a replay that is not used any more
    return is_read()


def is_log(path: Path) -> bool:
    """Return whether a regular file says that it is a run log; nothing is repaired.

    Raises:
        LogError: It is an HDF5 file, but cannot be read.
    """
    try:
        block = superblock.read(path)
        if block is None:
            return False
        marked = superblock.is_marked_open(block)
        with h5py.File(RepairedView(path, ()), "r") if marked else open_hdf5(path, "r") as file:
            return bool(metadata.read(file).get("format") == schema.FORMAT)
    except _DAMAGE as error:
        raise LogError(f"{path} is a damaged HDF5 file: {error}.") from error


def open_file(path: Path) -> OpenFile:
    """Open a run log's file, also one that is being written or whose writer was killed.

    A killed writer's file is repaired in place, under the writer's lock; where that may not be
    written, it is read as if it were repaired.

    Raises:
        LogError: It is missing, unreadable, no run log, or of a newer format.
    """
    opened = _open(path)
    try:
        checked = replace(opened, attributes=check_format(path, opened.file))
        _open_files.add(checked)
    except _DAMAGE as error:
        opened.file.close()
        raise LogError(f"{path} is a damaged run log: {error}; restore it from a copy.") from error
    except BaseException:
        opened.file.close()
        raise
    return checked


def check_format(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return a run log's attributes.

    Raises:
        LogError: It is none, or none of a format that this version reads.
    """
    found, whole = metadata.sealed(file)
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
    if metadata.CHECKSUM not in found or "ranks" not in found:
        raise LogError(
            f"{path} was written before the first release, in a format that is read no more; trace "
            "the run again, or read it with the version that wrote it."
        )
    if not whole:
        raise LogError(
            f"{path} is a damaged run log: its attributes do not match their checksum; restore it "
            "from a copy."
        )
    return found


def _open(path: Path) -> OpenFile:
    try:
        if not path.exists():
            raise LogError(f"there is no log {path}; check the path.")
        if not path.is_file():
            raise LogError(f"{path} is not a file; expected a run log such as run.h5.")
        if not h5py.is_hdf5(path):
            raise LogError(f"{path} is not an HDF5 file; expected a run log written by tracer.")
        block, found = superblock.read(path), path.stat()
        if block is None or not superblock.is_marked_open(block):
            return OpenFile(open_hdf5(path, "r"), live=False, repair="", stat=found)
        return OpenFile(*_open_marked(path), stat=found)
    except (OSError, RuntimeError) as error:
        raise LogError(f"{path} cannot be read: {error}.") from error


def _open_marked(path: Path) -> tuple[h5py.File, bool, str]:
    """Open a file that its writer has open or left so; see ``OpenFile``."""
    if is_being_written(path):
        return open_hdf5(path, "r", libver="latest", swmr=True), True, ""
    try:
        require_writable(path)
        lock = WriterLock(path)
        try:
            torn = " and ".join(repair(path, schema.TABLES))
        finally:
            lock.release()
        done = "its superblock was repaired"
        done += f", the torn index of {torn} too" if torn else ""
        return open_hdf5(path, "r"), False, done
    except (OSError, DamagedError) as error:
        if isinstance(error, OSError) and error.errno not in _UNWRITABLE:
            raise
        require_own_name(path)
        file = h5py.File(RepairedView(path, schema.TABLES), "r")
        why = error.strerror if isinstance(error, OSError) else error
        return file, False, f"it is read as if repaired, not changed ({why})"


def require_writable(path: Path) -> None:
    """Raise PermissionError for a file without write permission, also for root."""
    if not path.stat().st_mode & 0o222:
        raise PermissionError(errno.EACCES, "the file is read-only", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
