"""Where a part's rows go: the tables of a log, and the checksums of the step that is written."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

from numpy.typing import NDArray

from tracer.log.parts.source import NONE


class Writable(Protocol):
    """The tables of a log that is written."""

    def __getitem__(self, name: str) -> int:
        """Return a table's length, with what waits to be written."""

    def extend(self, name: str, data: bytes, rows: int) -> int:
        """Append rows; return where they begin."""

    def replace(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write rows now, over old ones or behind them."""

    def cut(self, name: str, length: int) -> None:
        """Drop the rows behind."""

    def rows(self, name: str, start: int, count: int) -> NDArray[Any]:
        """Return rows that are on file."""

    def last(self, name: str) -> NDArray[Any] | None:
        """Return the last row of a table on file."""


class Sink:
    """Appends the rows of one step after the other.

    Args:
        tables: The log's tables.

    Attributes:
        tables: Likewise.
        sums: The step's checksums so far, by column of its meta row.
    """

    def __init__(self, tables: Writable) -> None:
        self.tables = tables
        self.sums: dict[str, int] = {}
        self._last: dict[str, bytes] = {}  # rows of the tables that grow when one changes

    def begin(self) -> None:
        """Begin a step."""
        self.sums = {}

    def sum(self, checksum: str, data: bytes) -> None:
        """Add bytes to a checksum."""
        self.sums[checksum] = zlib.crc32(data, self.sums.get(checksum, 0))

    def add(self, name: str, data: bytes, rows: int, checksum: str) -> int:
        """Append rows to a table and to a checksum; return where they begin."""
        self.sum(checksum, data)
        return self.tables.extend(name, data, rows)

    def changed(self, name: str, data: bytes, checksum: str) -> int:
        """Append a row if it differs from the table's last one; return the row's number."""
        if not data:
            return NONE
        self.sum(checksum, data)
        if data == self._last.get(name):
            return self.tables[name] - 1
        self._last[name] = data
        return self.tables.extend(name, data, 1)

    def last(self, name: str) -> bytes:
        """Return the last row that ``changed`` was given for a table."""
        return self._last.get(name, b"")

    def recall(self, name: str) -> None:
        """Take the last row on file for the last one that ``changed`` was given."""
        row = self.tables.last(name)
        if row is not None:
            self._last[name] = row.tobytes()
