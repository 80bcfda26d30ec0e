"""The rows of parameters of a log that is read, decoded and checked."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tracer.codec.delta import Coder
from tracer.codec.layout import Field, Row, row_bytes
from tracer.log import schema
from tracer.log.read.tables import LogTables


class Snapshots:
    """Reads rows of parameters.

    Args:
        tables: The log's tables.
        layout: Of a row.
        coding: Encoding, momentum and keyframe interval of the log.
    """

    def __init__(self, tables: LogTables, layout: Sequence[Field], coding: Sequence[Any]) -> None:
        self._tables, self._width = tables, row_bytes(layout)
        self._coder = Coder(layout, *coding)

    def length(self, least: int) -> int:
        """Return how many rows there are; ``least`` of a model without parameters."""
        return self._tables.length(schema.WEIGHTS) if self._width else least

    def forget(self) -> None:
        """Read anew: a live writer may have replaced its last row."""
        self._coder.forget()

    def read(self, t: int, crc: int, *, last: bool = False) -> Row | None:
        """Return row ``t``; None if neither it nor its spare matches.

        Args:
            t: Its number.
            crc: Its checksum.
            last: Whether it is the last one, which a writer may have been replacing: the new row
                is put behind the old one first.
        """
        row = self._coder.read(t, self._load)
        if zlib.crc32(row.data) == crc:
            return row
        return self._spare(t, crc) if last else None

    def is_whole(self, t: int, crc: int) -> bool:
        """Return whether row ``t``, the last one maybe, matches its checksum."""
        return self.read(t, crc, last=True) is not None

    def is_replaced(self, t: int, crc: int) -> bool:
        """Return whether the last row is to be taken from its spare."""
        self.forget()
        return zlib.crc32(self._coder.read(t, self._load).data) != crc

    def _spare(self, t: int, crc: int) -> Row | None:
        if t + 1 >= self._tables.length(schema.WEIGHTS):
            return None
        self.forget()  # the row before may be kept, row t must not be
        row = self._coder.read(t, lambda k: self._load(k + (k == t)))
        if zlib.crc32(row.data) == crc:
            return row
        self.forget()
        return None

    def _load(self, k: int) -> Row:
        if not self._width:
            return np.zeros(0, np.uint8)
        found = self._tables.rows(schema.WEIGHTS, k, 1, f"snapshot {k}")
        return np.asarray(found[0, : self._width])
