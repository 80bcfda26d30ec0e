"""The first bytes of an HDF5 file: what a killed writer leaves wrong in them, and its repair.

A writer marks the file as open and notes its size only when it closes. ``h5clear -s --increment``
of HDF5's own tools does what ``repaired`` does. Source: HDF5 File Format Specification, version
3.0, section II.A (superblock versions 2 and 3); the checksum is Jenkins' lookup3.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

SIZE = 48
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSION, _WIDTH, _FLAGS, _END_OF_FILE, _CHECKSUM = 8, 9, 11, 28, 44
_MASK = 0xFFFFFFFF


def read(path: Path) -> bytes | None:
    """Return a file's superblock; None if it has none of the kind that a log has."""
    with path.open("rb") as file:
        block = file.read(SIZE)
    known = len(block) == SIZE and block[:8] == _SIGNATURE
    return block if known and block[_VERSION] in (2, 3) and block[_WIDTH] == 8 else None


def is_marked_open(block: bytes) -> bool:
    """Return whether a writer has the file open, or was killed when it had."""
    return block[_FLAGS] != 0


def repaired(block: bytes, size: int) -> tuple[bytes, int]:
    """Return the superblock of a closed file of ``size`` bytes, and the size it must have."""
    fixed = bytearray(block)
    (stored,) = struct.unpack_from("<Q", fixed, _END_OF_FILE)
    end = max(stored, size)
    fixed[_FLAGS] = 0
    struct.pack_into("<Q", fixed, _END_OF_FILE, end)
    struct.pack_into("<I", fixed, _CHECKSUM, lookup3(bytes(fixed[:_CHECKSUM])))
    return bytes(fixed), end


def repair(path: Path) -> None:
    """Mark a file as closed, in place; the caller holds the writer's lock."""
    block = read(path)
    if block is None or not is_marked_open(block):
        return
    with path.open("r+b") as file:
        fixed, end = repaired(block, os.fstat(file.fileno()).st_size)
        file.truncate(end)
        file.write(fixed)


class RepairedView(io.RawIOBase):
    """A file as it would be after ``repair``, for a place that cannot be written."""

    def __init__(self, path: Path) -> None:
        block = read(path)
        assert block is not None
        self._file = path.open("rb", buffering=0)
        self._stored = os.fstat(self._file.fileno()).st_size
        self._block, self._end = repaired(block, self._stored)
        self._position = 0

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
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; what the file does not have is zero."""
        target = memoryview(buffer).cast("B")
        start, count = self._position, max(0, min(len(target), self._end - self._position))
        data = os.pread(self._file.fileno(), count, start)
        target[:count] = data + bytes(count - len(data))
        if start < SIZE:
            block = self._block[start : start + count]
            target[: len(block)] = block
        self._position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def lookup3(data: bytes) -> int:
    """Return Jenkins' lookup3 hash, HDF5's metadata checksum."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    position = 0
    while len(data) - position > 12:
        x, y, z = struct.unpack_from("<III", data, position)
        a, b, c = _mix((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)
        position += 12
    if position == len(data):
        return c
    x, y, z = struct.unpack("<III", data[position:].ljust(12, b"\0"))
    return _final((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)


def _rotated(x: int, k: int) -> int:
    return ((x << k) | (x >> (32 - k))) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for k in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & _MASK) ^ _rotated(c, k)
        c = (c + b) & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, k)) & _MASK
        a, b, c = b, c, a
    # after seven turns the word that was changed last is b
    return b
