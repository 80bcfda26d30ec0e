"""The string IDs of a log: one text after the other, and where each ends; an ID is its number."""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Table
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable

STRINGS = "ids/bytes"
STRING_ENDS = "ids/ends"


class StringIds:
    """The strings so far, in the order of their first occurrence."""

    tables: ClassVar = {
        STRINGS: Table(np.dtype("u1"), chunk=4096),
        STRING_ENDS: Table(np.dtype("<i8"), chunk=1024),
    }

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of those written
        self._known: list[bytes] = []  # of those read

    def encode(self, sink: Sink, text: str) -> int:
        """Return the number of a string; append it if it is new."""
        if text not in self._numbers:
            data = text.encode()
            end = sink.tables.extend(STRINGS, data, len(data)) + len(data)
            sink.tables.extend(STRING_ENDS, array("q", [end]).tobytes(), 1)
            self._numbers[text] = len(self._numbers)
        return self._numbers[text]

    def decode(self, tables: Readable, least: int) -> list[bytes]:
        """Return the strings in UTF-8, by number; those known already if there are ``least``.

        A kill may leave a list whose end is not in order; so no more than ``least`` have to be.
        """
        if least <= len(self._known):
            return self._known
        where = "the list of string IDs"
        ends = tables.rows(STRING_ENDS, 0, tables.length(STRING_ENDS), where)
        data = tables.rows(STRINGS, 0, tables.length(STRINGS), where).tobytes()
        known = _texts(ends, data)
        if len(known) < min(least, len(ends)):
            raise tables.damage(STRING_ENDS, "is not in order")
        self._known = known
        return known

    def end(self, tables: Readable, count: int) -> dict[str, int]:
        """Return the lengths of the tables with so many strings; none if IDs are integers."""
        count = count if tables.strings else 0
        self.decode(tables, count)
        ends = tables.rows(STRING_ENDS, 0, count, "the string IDs")
        return {STRING_ENDS: count, STRINGS: int(ends[-1]) if count else 0}

    def restore(self, sink: Sink) -> None:
        """Take up the strings on file."""
        ends, data = (
            sink.tables.rows(name, 0, sink.tables[name]) for name in (STRING_ENDS, STRINGS)
        )
        known = _texts(ends, data.tobytes())
        self._numbers = {text.decode(errors="replace"): k for k, text in enumerate(known)}


def _texts(ends: NDArray[np.int64], data: bytes) -> list[bytes]:
    """Return the texts that end at some places, up to the first one that is not in order."""
    found = []
    for start, end in pairwise([0, *ends.tolist()]):
        if not start <= end <= len(data):
            break
        found.append(data[start:end])
    return found
