"""Rows that are read ahead are the table's, also where a writer was not done with them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from tracer.errors import LogError
from tracer.log.read import ahead


class Table:
    """Counts its rows; says how often it was read."""

    refreshed = 0

    def __init__(self, rows):
        self.data, self.reads = np.arange(rows), 0

    def length(self, name):
        return len(self.data)

    def rows(self, name, start, count, where):
        if start < 0 or start + count > len(self.data):
            raise LogError(f"{where}: no rows {start} to {start + count} in {name}")
        self.reads += 1
        return self.data[start : start + count].copy()


def test_any_order(monkeypatch):
    monkeypatch.setattr(ahead, "_BLOCK", 4)
    table = Table(11)
    rows = ahead.Ahead(table, "rows")
    for start, count in [(0, 1), (1, 2), (3, 3), (2, 9), (10, 1), (9, 1), (8, 2), (11, 0), (4, 0)]:
        assert rows.rows(start, count, "step 0").tolist() == list(range(start, start + count))
    for start, count in [(-1, 1), (0, 12), (11, 1), (300, 1)]:
        with pytest.raises(LogError, match="step 7"):
            rows.rows(start, count, "step 7")


@pytest.mark.parametrize("order", [1, -1])
def test_a_block_is_read_once(order):
    table = Table(256)
    rows = ahead.Ahead(table, "rows")
    for k in range(256)[::order]:
        assert rows.rows(k, 1, "") == k
    assert table.reads == 1


def test_new_and_completed_rows_are_seen():
    table = Table(2)
    rows = ahead.Ahead(table, "rows")
    assert rows.rows(1, 1, "") == 1
    table.data = np.array([0, 7, 2])
    assert rows.rows(2, 1, "") == 2
    table.data = np.array([0, 7, 5])
    assert rows.checked(2, 1, "", zlib.crc32(table.data[2:].tobytes())) == 5
    assert rows.checked(2, 1, "", 0) == 5  # whoever asks finds out that it does not match
