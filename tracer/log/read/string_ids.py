"""The string IDs of a log that is read: one text after the other, and where each ends."""

from __future__ import annotations

from tracer.log import schema
from tracer.log.read.tables import LogTables


class StringIds:
    """Reads them as often as a live writer has added some.

    Args:
        tables: The log's tables.
    """

    def __init__(self, tables: LogTables) -> None:
        self._tables = tables
        self._known: list[str] = []

    def all(self, least: int | None = None) -> list[str]:
        """Return the IDs by number; those known already if there are ``least`` of them.

        A kill may leave a list whose end is not in order; so no more than ``least`` have to be.
        """
        if least is not None and least <= len(self._known):
            return self._known
        where = "the list of string IDs"
        count = self._tables.length(schema.STRING_ENDS)
        ends = self._tables.rows(schema.STRING_ENDS, 0, count, where).tolist()
        size = self._tables.length(schema.STRINGS)
        data = self._tables.rows(schema.STRINGS, 0, size, where).tobytes()
        known, start = [], 0
        for end in ends:
            if not start <= end <= size:
                break
            known.append(data[start:end].decode(errors="replace"))
            start = end
        if len(known) < min(count, count if least is None else least):
            raise self._tables.damage(schema.STRING_ENDS, "is not in order")
        self._known = known
        return known
