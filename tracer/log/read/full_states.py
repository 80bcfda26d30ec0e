"""The full states of a log that is read: where each lies, checked against its checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tracer.codec.nested import NestedError, decode
from tracer.errors import LogError
from tracer.log import schema
from tracer.log.read.tables import LogTables


class FullStates:
    """Reads the full states of one log.

    Args:
        path: The log, for messages.
        tables: Its tables.
    """

    def __init__(self, path: Path, tables: LogTables) -> None:
        self._path, self._tables = path, tables

    def rows(self) -> NDArray[Any]:
        """Return a row for each state on file."""
        count = self._tables.length(schema.STATES)
        return self._tables.rows(schema.STATES, 0, count, "the list of states")

    def find(self, t: int) -> tuple[int, bytes]:
        """Return the number of the row of the state before step ``t``, and the state's bytes."""
        rows = self.rows()
        found = [k for k, row in enumerate(rows) if row["step"] == t]
        if not found:
            raise LogError(f"{self._path} holds no full state before step {t}; see states().")
        where = f"the state before step {t}"
        for k in reversed(found):  # a kill may have left a torn one behind
            start, size = rows[k]["offset"], rows[k]["bytes"]
            try:
                data = self._tables.rows(schema.SNAP_STATE, start, size, where).tobytes()
            except LogError:
                if k == found[0]:
                    raise
                continue
            if rows[k]["crc"] == schema.state_crc(rows[k], data):
                return k, data
        raise self._tables.damage(schema.SNAP_STATE, f"does not match its checksum for {where}")

    def read(self, t: int) -> dict[str, Any]:
        """Return the full state before step ``t``."""
        try:
            value = decode(self.find(t)[1])
        except NestedError as error:
            raise self._tables.damage(schema.SNAP_STATE, f"holds no state: {error}") from error
        if not isinstance(value, dict):
            raise self._tables.damage(schema.SNAP_STATE, "holds no state")
        return value
