"""A file of finished parts: named arrays, appended one part at a time, each with its checksum.

A record is a line with checksum and size, then a line of JSON and the arrays it names. A record
that a kill or a power cut has torn ends the file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Piece = bytes | memoryview
_LINE = 32  # bytes of a first line, at most


@dataclass(frozen=True)
class Record:
    """A record that is whole.

    Attributes:
        path: The file.
        header: What the line of JSON says; its ``arrays`` are name, dtype and shape of each.
        start: Where the arrays begin.
        end: Where the record ends.
    """

    path: Path
    header: dict[str, Any]
    start: int
    end: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Read the arrays."""
        found, start = {}, self.start
        for name, dtype, shape in self.header["arrays"]:
            count = int(np.prod(shape, dtype=np.int64))
            found[name] = np.fromfile(self.path, dtype, count, offset=start).reshape(shape)
            start += found[name].nbytes
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
    """Yield the records of a file from a place on, up to the first that is not whole."""
    with path.open("rb") as file:
        file.seek(start)
        while (first := file.readline(_LINE)).endswith(b"\n"):
            checksum, _, size = first.strip().partition(b" ")
            if not size.isdigit():
                return
            at, body = file.tell(), file.read(int(size))
            if len(body) < int(size) or checksum != f"{zlib.crc32(body):08x}".encode():
                return
            line = body.partition(b"\n")[0]
            yield Record(path, json.loads(line), at + len(line) + 1, file.tell())
