"""Rows that hold their own checksum."""

from __future__ import annotations

import zlib
from typing import Any

from numpy.typing import NDArray


def sealed(row: NDArray[Any], field: str = "crc") -> NDArray[Any]:
    """Return a row with its own checksum."""
    blank = row.copy()
    blank[field] = 0
    blank[field] = zlib.crc32(blank.tobytes())
    return blank


def is_sealed(row: NDArray[Any], field: str = "crc") -> bool:
    """Return whether a row matches its own checksum."""
    return bool(sealed(row, field)[field] == row[field])
