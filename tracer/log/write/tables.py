"""The growing datasets of a log that is being written.

Rows are collected and written at ``commit``, one call for each table, so that a burst of steps
costs as many calls as one. The low-level interface is a third of the time of the slices.
"""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
from h5py import h5s
from numpy.typing import NDArray

from tracer.codec.layout import Row, joined
from tracer.log import schema


class Tables:
    """Appends to the tables of one open file.

    Args:
        file: The file, complete but for its rows; SWMR is on or comes before the first commit.

    Attributes:
        waits: How many bytes are to be written at the next commit, uncompressed.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file, self.waits = file, 0
        # opened once: looking a dataset up costs more than a small write
        self._data = {name: file[name].id for name in (*schema.TABLES, schema.STATUS)}
        self._kept: dict[str, int] = {name: data.shape[0] for name, data in self._data.items()}
        self._length: dict[str, int] = dict(self._kept)
        self._waiting: dict[str, list[bytes]] = {}
        self._rows: list[Row] = []  # of parameters, that wait
        self._first_row = 0  # number of the first of them
        self._types = {name: data.get_type() for name, data in self._data.items()}
        self._tails = {name: data.shape[1:] for name, data in self._data.items()}
        self._dtypes = {name: data.dtype for name, data in self._data.items()}

    def __getitem__(self, name: str) -> int:
        """Return a table's length, with what waits."""
        return self._length[name]

    def extend(self, name: str, data: bytes, rows: int) -> int:
        """Append rows at the next commit; return where they begin."""
        start = self._length[name]
        if rows:
            self._waiting.setdefault(name, []).append(data)
            self._length[name] = start + rows
            self.waits += len(data)
        return start

    def replace(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write rows now, over old ones or behind them."""
        self._write_waiting(name)
        if start + len(rows) > self._kept[name]:
            self._grow(name, start + len(rows))
        self._put(name, start, rows)

    def cut(self, name: str, length: int) -> None:
        """Drop the rows behind."""
        if length < self._kept[name]:
            self._data[name].set_extent((length, *self._tails[name]))
            self._kept[name] = self._length[name] = length

    def snapshot(self, t: int, row: NDArray[np.uint8]) -> None:
        """Write row ``t`` of the parameters at the next commit; rows come in order."""
        if not self._rows:
            self._first_row = t
        self._rows.append(row)
        self.waits += row.nbytes

    def last(self, name: str) -> NDArray[Any] | None:
        """Return the last row of a table on file."""
        length = self._kept[name]
        return self._file[name][length - 1] if length else None

    def rows(self, name: str, start: int, count: int) -> NDArray[Any]:
        """Return rows that are on file."""
        return np.asarray(self._file[name][start : start + count])

    def commit(self) -> None:
        """Write what waits, the meta rows last, and hand it to the operating system."""
        self._write_snapshots()
        for name in [name for name in self._waiting if name != schema.META]:
            self._write_waiting(name)
        self._write_waiting(schema.META)
        self._file.flush()
        self.waits = 0

    def _write_snapshots(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        name, t = schema.WEIGHTS, self._first_row
        if t + len(rows) > self._kept[name]:
            self._grow(name, t + len(rows))
        for block in joined(rows):
            # not write_direct_chunk: that one keeps the interpreter's lock, and training waits
            self._put(name, t, block)
            t += len(block)

    def _write_waiting(self, name: str) -> None:
        pieces = self._waiting.pop(name, None)
        if pieces is None:
            return
        start = self._kept[name]
        self._grow(name, self._length[name])
        rows = np.frombuffer(b"".join(pieces), self._dtypes[name])
        self._put(name, start, rows.reshape(-1, *self._tails[name]))

    def _grow(self, name: str, length: int) -> None:
        self._data[name].set_extent((length, *self._tails[name]))
        self._kept[name] = length
        self._length[name] = max(length, self._length[name])

    def _put(self, name: str, start: int, rows: NDArray[Any]) -> None:
        data = self._data[name]
        space = data.get_space()
        corner = (start, *(0 for _ in rows.shape[1:]))
        space.select_hyperslab(corner, rows.shape)
        # the type is given: finding it out takes longer than the write
        memory = h5s.create_simple(rows.shape)
        data.write(memory, space, np.ascontiguousarray(rows), self._types[name])


def sync(file: h5py.File) -> None:
    """Force what was handed to the operating system to the disk itself."""
    getattr(os, "fdatasync", os.fsync)(int(file.id.get_vfd_handle()))
