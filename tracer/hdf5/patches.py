"""Blocks of an HDF5 file, each with a checksum at its end, and what some of them should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tracer.hdf5.lookup3 import lookup3

FIRST = 48  # the superblock comes before everything
PAGE = 4096  # that reaches the disk whole

Read = Callable[[int, int], bytes]


def number(data: NDArray[np.uint8]) -> int:
    """Return a number from its bytes, the lowest first."""
    return int.from_bytes(data.tobytes(), "little")


class UnbornError(Exception):
    """A part of an index is not there: it never reached the disk."""


class DamagedError(Exception):
    """A part of an index is neither whole nor what a power cut leaves."""


class Patches:
    """What a file should have in the place of what it has.

    Args:
        read: Returns so many bytes from an offset.
        size: Of the file.

    Attributes:
        size: Of the file.
        end: Where its last chunk ends, all of which need not be on file.
        found: The bytes, by offset.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read, self.size, self.end = read, size, size
        self.found: dict[int, bytes] = {}

    def block(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return a block as it is in the file."""
        if not FIRST <= address <= self.size - size:
            raise UnbornError
        return np.frombuffer(self._read(address, size), np.uint8).copy()

    def seal(
        self,
        addresses: NDArray[np.uint64],
        blocks: NDArray[np.uint8],
        mixed: NDArray[np.bool_] | None = None,
    ) -> None:
        """Give blocks that were changed their checksum, the last four bytes, and note them.

        Args:
            addresses: (blocks,).
            blocks: (blocks, bytes).
            mixed: (blocks,) which of them do not match the checksum that they have.
        """
        size, places = blocks.shape[1], addresses.tolist()
        new = [self._read(a, size) != b.tobytes() for a, b in zip(places, blocks, strict=True)]
        rows = np.flatnonzero(new if mixed is None else new | mixed)
        if len(rows):
            blocks[rows, -4:] = lookup3(blocks[rows, :-4])[:, None].view(np.uint8)
        for k in rows:
            self.found[places[k]] = blocks[k].tobytes()


def torn(starts: NDArray[np.uint64], blocks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which blocks of one size do not match their checksum, the last four bytes.

    Raises:
        DamagedError: One of them lies on one page, which reaches the disk whole.
    """
    wrong: NDArray[np.bool_] = lookup3(blocks[:, :-4]) != blocks[:, -4:].copy().view("<u4")[:, 0]
    if (wrong & (starts % PAGE + blocks.shape[1] <= PAGE)).any():
        raise DamagedError
    return wrong
