"""The first bytes of an HDF5 file: what a killed writer leaves wrong in them, and its repair.

A writer marks the file as open and notes its size only when it closes. ``h5clear -s --increment``
of HDF5's own tools does what ``repaired`` does. Source: HDF5 File Format Specification, version
3.0, section II.A (superblock versions 2 and 3); the checksum is Jenkins' lookup3.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tracer.hdf5.lookup3 import lookup3

SIZE = 48
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSION, _WIDTH, _FLAGS, _END_OF_FILE, _CHECKSUM = 8, 9, 11, 28, 44


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
    struct.pack_into("<I", fixed, _CHECKSUM, lookup3(np.array([fixed[:_CHECKSUM]]))[0])
    return bytes(fixed), end
