"""Finished counterfactual runs on file: a job that was killed goes on where it was.

A file of lines, each a JSON value with its checksum: the question first, then a run's number and
values. A line that a kill or a power cut has torn ends it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tracer.errors import InputError

Table = NDArray[np.float64]


def parts_of(target: Path) -> Path:
    """Return where finished runs of a result are kept."""
    return target.with_name(f"{target.name}.parts")


class Parts:
    """Values of finished runs, in memory and, if there is a path, on file.

    Args:
        path: Where; None keeps them in memory alone.
        question: What the runs answer: whoever goes on must ask the same, in the same way.
        shape: Of the values of a run.

    Attributes:
        done: Values of finished runs, by number.

    Raises:
        InputError: The file has runs of another question, or cannot be written.
    """

    def __init__(
        self, path: Path | None, question: Mapping[str, Any], shape: tuple[int, ...]
    ) -> None:
        self.done: dict[int, Table] = {}
        self._path, self._shape = path, shape
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._open(path, json.loads(json.dumps(question)))
            except OSError as error:
                raise InputError(
                    f"finished runs cannot be kept in {path}: {error.strerror}; choose another "
                    "place."
                ) from error

    def add(self, number: int, values: Table) -> None:
        """Keep a run's values."""
        self.done[number] = values
        data = base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()
        self._append([number, data])

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove the file: the result is on file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _open(self, path: Path, question: dict[str, Any]) -> None:
        data = path.read_bytes() if path.exists() else b""
        lines, length = _whole_lines(data)
        if not lines and not _line(question).startswith(data):
            raise InputError(
                f"{path} holds no finished runs; move it away, or choose another place for the "
                "result."
            )
        if lines and lines[0] != question:
            found: dict[str, Any] = lines[0] if isinstance(lines[0], dict) else {}
            other = next((name for name in question if found.get(name) != question[name]), "")
            raise InputError(
                f"{path} holds finished runs of another question: its {other} is not the same.\n"
                "1. To go on, ask as before, in the same surroundings.\n"
                "2. To begin anew, remove that file, or choose another place for the result."
            )
        for number, data in lines[1:]:
            values = np.frombuffer(base64.b64decode(data), "<f8").reshape(self._shape)
            self.done[number] = values.astype(np.float64)
        self._file = path.open("ab")
        self._file.truncate(length)
        if not lines:
            self._append(question)

    def _append(self, value: Any) -> None:
        if self._file is not None:
            self._file.write(_line(value))
            self._file.flush()


def _line(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def _whole_lines(data: bytes) -> tuple[list[Any], int]:
    """Return the values of the lines up to the first torn one, and how many bytes they are."""
    found, length = [], 0
    for line in data.splitlines(keepends=True):
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
            break
        found.append(json.loads(text))
        length += len(line)
    return found, length
