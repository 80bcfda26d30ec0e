"""Rows of a table read ahead: HDF5 takes as long for one row of a compound type as for many."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256


class Tables(Protocol):
    """Tables whose rows are read; see ``LogTables``."""

    def length(self, name: str) -> int:
        """Return how many rows a table has."""

    def rows(self, name: str, start: int, count: int, where: str) -> NDArray[Any]:
        """Return some rows of a table."""


class Ahead:
    """Reads one table of a log, a block of rows at once.

    Args:
        tables: The log's tables.
        name: The table.
    """

    def __init__(self, tables: Tables, name: str) -> None:
        self._tables, self._name = tables, name
        self._first, self._block = 0, np.zeros(0)

    def rows(self, start: int, count: int, where: str) -> NDArray[Any]:
        """Return some rows, as they were when first read; see ``LogTables.rows``."""
        start, count = int(start), int(count)
        if not self._first <= start <= start + count <= self._first + len(self._block):
            first = start - start % _BLOCK
            more = min(_BLOCK, self._tables.length(self._name) - first)
            self._block = self._tables.rows(
                self._name, first, max(start + count - first, more), where
            )
            self._first = first
        return self._block[start - self._first : start - self._first + count]

    def checked(
        self, start: int, count: int, where: str, crc: int, before: int = 0
    ) -> NDArray[Any]:
        """Return some rows; those that do not match their checksum are read once more.

        Args:
            start: The first.
            count: How many.
            where: For messages.
            crc: Of them, and of what comes before them.
            before: Checksum of that.
        """
        rows = self.rows(start, count, where)
        if zlib.crc32(rows.tobytes(), before) != crc:
            self.forget()
            rows = self.rows(start, count, where)
        return rows

    def forget(self) -> None:
        """Read anew: a live writer may have completed rows that were read too early."""
        self._block = self._block[:0]
