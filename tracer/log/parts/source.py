"""Where a part's rows come from: the tables of a log, and the checksums of the step that is read.

The checksums grow as rows are read, in the order in which they were written; see ``Sink``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.codec.layout import Row
from tracer.errors import LogError

NONE = -1  # "no row": deterministic pass, equal coefficients, no epoch


class Readable(Protocol):
    """The tables of a log that is read.

    Attributes:
        path: The log, for messages.
        strings: Whether IDs are strings.
    """

    path: Path
    strings: bool

    def length(self, name: str) -> int:
        """Return how many rows a table has."""

    def rows(self, name: str, start: int, count: int, where: str) -> NDArray[Any]:
        """Return some rows; ``where`` is for messages."""

    def checked(
        self, name: str, start: int, count: int, where: str, *, crc: int, before: int
    ) -> NDArray[Any]:
        """Return some rows out of a block that is read at once; see ``Ahead.checked``."""

    def status(self) -> Any:
        """Return the status row."""

    def damage(self, name: str, what: str) -> LogError:
        """Return the error for a table that is not as it must be."""

    def broken(self, t: int, name: str) -> LogError:
        """Return the error for a step whose rows do not match their checksum."""


class Source:
    """Reads the rows of one step.

    Args:
        tables: The log's tables.
        t: The step.
        meta: Its meta row.

    Attributes:
        tables: Likewise.
        meta: Likewise.
        t: Likewise.
        where: The step, for messages.
    """

    def __init__(self, tables: Readable, t: int, meta: Any) -> None:
        self.tables, self.t, self.meta, self.where = tables, t, meta, f"step {t}"
        self._sums: dict[str, int] = {}

    def sum(self, checksum: str, data: bytes) -> None:
        """Add bytes to a checksum."""
        self._sums[checksum] = zlib.crc32(data, self._sums.get(checksum, 0))

    def rows(self, name: str, start: int, count: int, checksum: str) -> NDArray[Any]:
        """Return rows of a table, and add them to a checksum."""
        found = self.tables.rows(name, start, count, self.where)
        self.sum(checksum, found.tobytes())
        return found

    def ahead(self, name: str, start: int, count: int, checksum: str) -> NDArray[Any]:
        """Return rows of a table that is read in blocks, the last ones of a checksum; add them."""
        known = {"crc": int(self.meta[checksum]), "before": self._sums.get(checksum, 0)}
        found = self.tables.checked(name, start, count, self.where, **known)
        self.sum(checksum, found.tobytes())
        return found

    def row(self, name: str, number: int, checksum: str) -> Row:
        """Return a byte row, and add it to a checksum; no bytes if there is none."""
        if number == NONE:
            return np.zeros(0, np.uint8)
        return np.asarray(self.rows(name, number, 1, checksum)[0])

    def check(self, checksums: Mapping[str, str]) -> None:
        """Raise LogError unless what was read so far matches some checksums.

        Args:
            checksums: Their columns of the meta row, and the table that the error names.
        """
        for checksum, name in checksums.items():
            if self._sums.get(checksum, 0) != self.meta[checksum]:
                raise self.broken(name)

    def broken(self, name: str) -> LogError:
        """Return the error for rows of the step that do not match their checksum."""
        return self.tables.broken(self.t, name)
