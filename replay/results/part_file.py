"""A file of finished parts: named arrays, appended one part at a time, each with its checksum.

A record is a line with checksum and size, then a line of JSON and the arrays it names. A record
that a kill or a power cut has torn ends the file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Piece = bytes | memoryview
_LINE = 32  # bytes of a first line, at most


@dataclass(frozen=True)
class Record:
    """A record, as long as its first line says.

    Attributes:
        path: The file.
        header: What the line of JSON says; its ``arrays`` are name, dtype and shape of each.
        place: Where the record begins.
        start: Where the line of JSON begins.
        end: Where the record ends.
        checksum: What its first line says.
    """

    path: Path
    header: dict[str, Any]
    place: int
    start: int
    end: int
    checksum: bytes

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """Read the arrays; None if the record is damaged."""
        data = np.fromfile(self.path, np.uint8, self.end - self.start, offset=self.start)
        if f"{zlib.crc32(data.data):08x}".encode() != self.checksum:
            return None
        found, end = {}, len(data)
        for name, dtype, shape in reversed(self.header["arrays"]):
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            found[name] = data[end - size : end].copy().view(dtype).reshape(shape)
            end -= size
        return found


def packed(header: Mapping[str, Any], arrays: Arrays) -> list[Piece]:
    """Return a record as bytes, in pieces: large arrays are not copied."""
    little = {
        name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()
    }
    named = [[name, a.dtype.str, list(a.shape)] for name, a in little.items()]
    line = json.dumps({**header, "arrays": named}, sort_keys=True).encode() + b"\n"
    return _checked([line, *(a.reshape(-1).view(np.uint8).data for a in little.values())])


def with_checksum(body: bytes) -> bytes:
    """Return bytes behind a line with their checksum and how many they are."""
    return b"".join(_checked([body]))


def _checked(body: list[Piece]) -> list[Piece]:
    checksum, size = 0, 0
    for piece in body:
        checksum, size = zlib.crc32(piece, checksum), size + len(piece)
    return [f"{checksum:08x} {size}\n".encode(), *body]


def without_checksum(data: bytes) -> bytes | None:
    """Return what ``with_checksum`` was given; None if it is torn."""
    body = data.partition(b"\n")[2]
    return body if with_checksum(body) == data else None


def records(path: Path, start: int = 0) -> Iterator[Record]:
    """Yield the records of a file from a place on, up to the first that is not whole.

    Arrays are not read, but of the last record: a kill tears no other.
    """
    with path.open("rb") as file:
        while (found := _record(file, path, start)) is not None:
            start = found.end
            if start == os.fstat(file.fileno()).st_size and found.arrays() is None:
                return
            yield found


def record(path: Path, place: int) -> Record | None:
    """Return the record that begins at a place; None if there is none."""
    with path.open("rb") as file:
        return _record(file, path, place)


def _record(file: BinaryIO, path: Path, place: int) -> Record | None:
    file.seek(place)
    first = file.readline(_LINE)
    checksum, _, size = first.strip().partition(b" ")
    if not first.endswith(b"\n") or not size.isdigit():
        return None
    start = place + len(first)
    end = start + int(size)
    if end > os.fstat(file.fileno()).st_size:
        return None
    try:
        header = json.loads(file.readline(int(size)))
    except ValueError:
        return None
    return Record(path, header, place, start, end, checksum)
