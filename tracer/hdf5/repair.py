"""Mending the file of a writer that was killed or lost its power: its superblock, its indexes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py

from tracer.hdf5 import superblock
from tracer.hdf5.chunk_index import mend
from tracer.hdf5.links import is_own
from tracer.hdf5.patches import DamagedError, Patches, UnbornError

_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, UnbornError, DamagedError)


def repair(path: Path, tables: Iterable[str]) -> list[str]:
    """Mark a file as closed, in place, and mend its indexes; the caller holds the writer's lock.

    Args:
        path: The file.
        tables: Names of its growing datasets.

    Returns:
        The tables whose index was torn.

    Raises:
        DamagedError: It is not what a kill or a power cut leaves; nothing is changed.
    """
    block = superblock.read(path)
    if block is None or not superblock.is_marked_open(block):
        return []
    with RepairedView(path, tables) as view, path.open("r+b") as file:
        if view.damage:
            raise DamagedError(view.damage)
        file.truncate(view.end)
        for offset, data in view.patches.items():
            if offset:
                file.seek(offset)
                file.write(data)
        if view.torn:  # the mark goes last: it asks for a repair
            file.flush()
            os.fsync(file.fileno())
        file.seek(0)
        file.write(view.patches[0])
    return view.torn


class RepairedView(io.RawIOBase):
    """A file as it is after ``repair``, for a place that cannot be written.

    Attributes:
        end: The size that it has.
        patches: What it has elsewhere than the file, by offset.
        torn: The tables whose index was torn.
        damage: What else is wrong, and is left as it is; empty if nothing is.
    """

    def __init__(self, path: Path, tables: Iterable[str]) -> None:
        block = superblock.read(path)
        assert block is not None
        self._file = path.open("rb", buffering=0)
        self._position = 0
        stored = os.fstat(self._file.fileno()).st_size
        fixed, self.end = superblock.repaired(block, stored)
        self.patches = {0: fixed}
        self.torn: list[str] = []
        self.damage = ""
        found = Patches(self._read, stored)
        try:
            with h5py.File(self, "r") as file:
                self._mend(file, found, tables)
        except (OSError, RuntimeError) as error:
            self.damage = f"HDF5 cannot open it: {error}"
        fixed, self.end = superblock.repaired(block, found.end)
        self.patches = {0: fixed, **found.found}

    def _mend(self, file: h5py.File, found: Patches, tables: Iterable[str]) -> None:
        damaged = []
        for name in tables:
            before = dict(found.found)
            try:
                if is_own(file, name):
                    mend(file, name, found)
            except _DAMAGE:
                found.found = before
                damaged.append(name)
            if len(found.found) > len(before):
                self.torn.append(name)
        if damaged:
            self.damage = f"the index of {', '.join(damaged)} is damaged"

    def _read(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, offset)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.end}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; what the file does not have is zero."""
        target = memoryview(buffer).cast("B")
        start, count = self._position, max(0, min(len(target), self.end - self._position))
        data = self._read(start, count)
        target[:count] = data + bytes(count - len(data))
        for offset, patch in self.patches.items():
            first, last = max(start, offset), min(start + count, offset + len(patch))
            if first < last:
                target[first - start : last - start] = patch[first - offset : last - offset]
        self._position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
