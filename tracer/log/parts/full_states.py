"""The full states of a run: from one of them it resumes.

A row says where the bytes of each lie and has their checksum, and its own.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tracer.codec.nested import NestedError, decode
from tracer.errors import LogError
from tracer.log.parts.facts import Table
from tracer.log.parts.seals import is_sealed, sealed
from tracer.log.parts.sink import Writable
from tracer.log.parts.source import Readable

STATES = "snap/states"
SNAP_STATE = "snap/opt"
STATE_DTYPE = np.dtype(
    [*((name, "<i8") for name in ("step", "offset", "bytes")), ("state_crc", "<u4"), ("crc", "<u4")]
)
TABLES = {STATES: Table(STATE_DTYPE, chunk=16), SNAP_STATE: Table(np.dtype("u1"), chunk=1 << 16)}


class FullStateWriter:
    """Writes full states.

    Args:
        tables: The log's tables.
        passing: Whether the first state takes the place of the last one on file.
    """

    def __init__(self, tables: Writable, *, passing: bool = False) -> None:
        self._tables, self._passing = tables, passing
        self._end = 0  # of the last one's bytes

    def encode(self, t: int, data: bytes, *, passing: bool) -> bool:
        """Write the state before step ``t``, encoded, if it is not on file already.

        Args:
            t: The step.
            data: The state.
            passing: Whether the next state may take its place.

        Returns:
            Whether something was written.
        """
        number, offset = self._tables[STATES], self._tables[SNAP_STATE]
        last = self._tables.last(STATES)
        if last is not None and (self._passing or last["step"] == t):
            number, offset = number - 1, int(last["offset"])
        row = np.zeros(1, STATE_DTYPE)
        row["step"], row["bytes"], row["offset"] = t, len(data), offset
        row["state_crc"] = zlib.crc32(data)
        row = sealed(row)
        self._passing, self._end = passing, offset + len(data)
        if last is not None and row[0] == last:
            return False  # a flush wrote it
        self._tables.replace(SNAP_STATE, offset, np.frombuffer(data, np.uint8))
        self._tables.replace(STATES, number, row)
        return True

    def trim(self) -> bool:
        """Cut off what a longer state left behind the last one; return whether it did."""
        longer = self._tables[SNAP_STATE] > self._end
        if longer:
            self._tables.cut(SNAP_STATE, self._end)
        return longer


class FullStates:
    """Reads full states.

    Args:
        tables: The log's tables.
    """

    def __init__(self, tables: Readable) -> None:
        self._tables = tables
        self._whole = b""  # the row of the last state that was found whole

    @property
    def closed(self) -> bool:
        """Whether the log was ended cleanly."""
        return bool(self._tables.status()["closed"])

    def rows(self) -> dict[int, Any]:
        """Return a row for each state on file, by its number.

        Raises:
            LogError: One does not match its checksum, in a log that was closed; in others a kill
                may have torn it.
        """
        count = self._tables.length(STATES)
        rows = self._tables.rows(STATES, 0, count, "the list of states")
        found = {k: rows[k] for k in range(count) if is_sealed(rows[k : k + 1])}
        if len(found) < count and self._tables.status()["closed"]:
            raise self._tables.damage(STATES, "does not match its checksum")
        return found

    def steps(self) -> list[int]:
        """Return the steps before which a full state is on file, in order.

        The last one's bytes make place for those of the next; a kill in between leaves none.
        """
        rows = list(self.rows().values())
        if rows and not self.closed and not self._is_whole(rows[-1]):
            rows.pop()
        return [int(row["step"]) for row in rows]

    def decode(self, t: int) -> dict[str, Any]:
        """Return the full state before step ``t``.

        Raises:
            LogError: There is none, or it does not match its checksum.
        """
        try:
            value = decode(self._find(t)[1])
        except NestedError as error:
            raise self._tables.damage(SNAP_STATE, f"holds no state: {error}") from error
        if not isinstance(value, dict):
            raise self._tables.damage(SNAP_STATE, "holds no state")
        return value

    def encoded(self, t: int) -> bytes:
        """Return the bytes of the full state before step ``t``; errors as for ``decode``."""
        return self._find(t)[1]

    def end(self, t: int) -> dict[str, int]:
        """Return the length of each table with the state before step ``t`` as the last one."""
        number, data = self._find(t)
        return {STATES: number + 1, SNAP_STATE: int(self.rows()[number]["offset"]) + len(data)}

    def _find(self, t: int) -> tuple[int, bytes]:
        """Return the number of the row of the state before step ``t``, and the state's bytes."""
        rows = self.rows()
        found = [k for k, row in rows.items() if row["step"] == t]
        if not found:
            raise LogError(
                f"{self._tables.path} holds no full state before step {t}; see states()."
            )
        where = f"the state before step {t}"
        for k in reversed(found):  # a kill may have left a torn one behind
            start, size = rows[k]["offset"], rows[k]["bytes"]
            try:
                data = self._tables.rows(SNAP_STATE, start, size, where).tobytes()
            except LogError:
                if k == found[0]:
                    raise
                continue
            if rows[k]["state_crc"] == zlib.crc32(data):
                return k, data
        raise self._tables.damage(SNAP_STATE, f"does not match its checksum for {where}")

    def _is_whole(self, row: Any) -> bool:
        if row.tobytes() != self._whole:
            try:
                data = self._tables.rows(SNAP_STATE, row["offset"], row["bytes"], "the last state")
            except LogError:
                return False
            if row["state_crc"] != zlib.crc32(data.tobytes()):
                return False
            self._whole = row.tobytes()
        return True
