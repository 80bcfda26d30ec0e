"""Finished parts of a long job on file: one that was killed goes on where it was.

A folder with a file for each process that ever worked on the result, so that no two write to one.
Each holds the question first, then parts.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from replay.results.part_file import (
    Arrays,
    Record,
    packed,
    records,
    with_checksum,
    without_checksum,
)
from tracer.errors import InputError

_ENDING, _STATE = ".parts", ".state"
_PART, _NOTE = "part", "note"  # in headers


def parts_of(target: Path) -> Path:
    """Return where finished parts of a result are kept."""
    return target.with_name(f"{target.name}{_ENDING}")


def begun_with(path: Path, name: str) -> Any:
    """Return one entry of the question that finished parts on file answer; None without any."""
    for file in sorted(path.glob(f"*{_ENDING}")):
        for record in () if file.stem.endswith(_STATE) else records(file, 0):
            return record.header.get("question", {}).get(name)
    return None


class Parts:
    """Finished parts, by name: in memory or, if there is a path, on file.

    Args:
        path: The folder; None keeps them in memory alone.
        question: What the parts answer: whoever goes on must ask the same, in the same way.

    Raises:
        InputError: The folder has parts of another question or something else, or cannot be
            written.

    Attributes:
        path: As given.
    """

    def __init__(self, path: Path | None, question: Mapping[str, Any]) -> None:
        self.path, self._question = path, json.loads(json.dumps(question))
        self._kept: dict[str, Record | Arrays] = {}
        self._read: dict[Path, int] = {}  # how far each file was read
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                path.mkdir(exist_ok=True)
                self.refresh()
                self._own()
            except OSError as error:
                if path.exists() and not path.is_dir():
                    raise _foreign(path) from error
                raise _unwritten(path, error) from error

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def __getitem__(self, name: str) -> Arrays:
        found = self._kept[name]
        return found.arrays() if isinstance(found, Record) else found

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # on a full disk: what is whole was flushed
                self._file.close()

    def recognise(self, name: str, fact: int) -> None:
        """Keep a fact on which all parts depend, unless there is one.

        Raises:
            InputError: There is another.
        """
        if name not in self:
            self.note(name, {name: np.array(fact)})
        elif int(self[name][name]) != fact:
            raise self._other(name)

    def names(self) -> list[str]:
        """Return which parts are finished."""
        return list(self._kept)

    def add(self, name: str, arrays: Arrays) -> None:
        """Keep a part."""
        self._kept[name] = arrays if self._file is None else self._append({_PART: name}, arrays)

    def note(self, name: str, arrays: Arrays) -> None:
        """Keep what is no work, and worth nothing without a part."""
        self._kept[name] = self._append({_PART: name, _NOTE: True}, arrays)

    def keep_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep tensors and numbers, in place of earlier ones of that name."""
        assert self.path is not None
        data, place = io.BytesIO(), self.path / f"{name}{_STATE}{_ENDING}"
        torch.save(dict(state), data)
        partial = place.with_name(f"{secrets.token_hex(8)}{_STATE}{_ENDING}")
        try:
            partial.write_bytes(with_checksum(data.getvalue()))
            partial.replace(place)
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def state(self, name: str) -> Any:
        """Return what was kept under a name; None if that is nothing, or torn."""
        assert self.path is not None
        place = self.path / f"{name}{_STATE}{_ENDING}"
        data = without_checksum(place.read_bytes()) if place.exists() else None
        return None if data is None else torch.load(io.BytesIO(data), weights_only=True)

    def refresh(self) -> None:
        """Look for parts that other processes have finished meanwhile.

        Raises:
            InputError: They are of another question, or no parts.
        """
        for path in sorted(self.path.iterdir() if self.path is not None else ()):
            if path.suffix != _ENDING:
                raise _foreign(path.parent)
            for record in (
                () if path.stem.endswith(_STATE) else records(path, self._read.get(path, 0))
            ):
                if "question" in record.header:
                    self._compare(record.header["question"])
                else:
                    self._kept[record.header[_PART]] = record
                self._read[path] = record.end

    def _own(self) -> None:
        """Begin this process's own file."""
        assert self.path is not None
        self._file = (self.path / f"{secrets.token_hex(8)}{_ENDING}").open("xb")
        self._append({"question": self._question}, {})

    def _append(self, header: Mapping[str, Any], arrays: Arrays) -> Record:
        """Write a record to this process's own file, and look at it there."""
        assert self._file is not None
        path, start = Path(self._file.name), self._file.tell()
        try:
            self._file.writelines(packed(header, arrays))
            self._file.flush()
        except OSError as error:
            raise _unwritten(path.parent, error) from error
        self._read[path] = self._file.tell()
        return next(records(path, start))

    def _compare(self, found: dict[str, Any]) -> None:
        ours = self._question
        if found != ours:
            other = next(name for name in {**ours, **found} if found.get(name) != ours.get(name))
            raise self._other(other)

    def _other(self, name: str) -> InputError:
        return InputError(
            f"{self.path} holds finished parts of another question: its {name} is not the same.\n"
            "1. To go on, ask as before, in the same surroundings.\n"
            "2. To begin anew, remove that folder, or choose another place for the result."
        )


def remove_parts(target: Path) -> None:
    """Remove the finished parts of a result that is on file."""
    path = parts_of(target)
    if path.is_dir():
        for part in path.glob(f"*{_ENDING}"):
            part.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            path.rmdir()


def remove_unbegun(target: Path) -> None:
    """Remove what a job left that finished no part: another question may be asked there."""
    headers = [
        [] if file.stem.endswith(_STATE) else [record.header for record in records(file)]
        for file in parts_of(target).glob(f"*{_ENDING}")
    ]
    ours = all(some and "question" in some[0] for some in headers)
    if ours and all(_NOTE in one for some in headers for one in some if _PART in one):
        remove_parts(target)


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(
        f"finished parts cannot be kept in {path}: {error.strerror}.\n"
        "1. Make room there, and give the same command again: what is finished stays.\n"
        "2. Choose another place for the result."
    )


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} holds something else than finished parts; move it away, or choose another place "
        "for the result."
    )
