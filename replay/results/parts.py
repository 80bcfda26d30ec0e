"""Finished parts of a long job on file: one that was killed goes on where it was.

A folder with a file for each process that ever worked on the result, so that no two write to one.
Each holds the question first, then parts.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from replay.results.part_file import (
    Arrays,
    packed,
    record,
    records,
    with_checksum,
    without_checksum,
)
from replay.results.part_folder import ENDING, NOTE, PART, STATE
from replay.results.places import Places
from tracer.errors import InputError

ELSEWHERE = "Choose another place for the result."


class Parts:
    """Finished parts, by name: in memory or, if there is a path, on file.

    Args:
        path: The folder; None keeps them in memory alone.
        question: What the parts answer: whoever goes on must ask the same, in the same way.
        instead: What else can be done where the folder cannot be used, for messages.

    Raises:
        InputError: The folder has parts of another question or something else, or cannot be
            written.

    Attributes:
        path: As given.
    """

    def __init__(
        self, path: Path | None, question: Mapping[str, Any], *, instead: str = ELSEWHERE
    ) -> None:
        self.path, self._question = path, json.loads(json.dumps(question))
        self._instead = instead
        self._kept: dict[str, Arrays] = {}  # without a path
        self._places = Places()
        self._read: dict[Path, int] = {}  # how far each file was read
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                path.mkdir(exist_ok=True)
                self.refresh()
                self._own()
            except OSError as error:
                if path.exists() and not path.is_dir():
                    raise self._foreign() from error
                raise self._unwritten(error) from error

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._kept

    def __getitem__(self, name: str) -> Arrays:
        if name in self._kept:
            return self._kept[name]
        if name not in self._places:
            raise _not_shown(self.path, name)
        path, place = self._places[name]
        found = record(path, place)
        arrays = found.arrays() if found and found.header.get(PART) == name else None
        if arrays is None:
            raise self._damaged(path, place, name)
        return arrays

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
            raise self.other(name)

    def add(self, name: str, arrays: Arrays) -> None:
        """Keep a part."""
        if self._file is None:
            self._kept[name] = arrays
        else:
            self._places[name] = self._append({PART: name}, arrays)

    def note(self, name: str, arrays: Arrays) -> None:
        """Keep what is no work, and worth nothing without a part."""
        self._places[name] = self._append({PART: name, NOTE: True}, arrays)

    def keep_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep tensors and numbers, in place of earlier ones of that name."""
        assert self.path is not None
        data, place = io.BytesIO(), self.path / f"{name}{STATE}"
        torch.save(dict(state), data)
        partial = place.with_name(f"{secrets.token_hex(8)}{STATE}")
        try:
            partial.write_bytes(with_checksum(data.getvalue()))
            partial.replace(place)
        except OSError as error:
            raise self._unwritten(error) from error

    def state(self, name: str) -> Any:
        """Return what was kept under a name; None if that is nothing, or torn."""
        assert self.path is not None
        place = self.path / f"{name}{STATE}"
        data = without_checksum(place.read_bytes()) if place.exists() else None
        return None if data is None else torch.load(io.BytesIO(data), weights_only=True)

    def refresh(self) -> None:
        """Look for parts that other processes have finished meanwhile.

        Raises:
            InputError: They are of another question, or no parts.
        """
        for path in sorted(self.path.iterdir() if self.path is not None else ()):
            if path.suffix not in (ENDING, STATE):
                raise self._foreign()
            for one in records(path, self._read.get(path, 0)) if path.suffix == ENDING else ():
                if "question" in one.header:
                    self._compare(one.header["question"])
                else:
                    self._places[one.header[PART]] = path, one.place
                self._read[path] = one.end

    def _own(self) -> None:
        """Begin this process's own file."""
        assert self.path is not None
        self._file = (self.path / f"{secrets.token_hex(8)}{ENDING}").open("xb")
        self._append({"question": self._question}, {})

    def _append(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[Path, int]:
        """Write a record to this process's own file; return where it begins."""
        assert self._file is not None
        path, start = Path(self._file.name), self._file.tell()
        try:
            self._file.writelines(packed(header, arrays))
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error
        self._read[path] = self._file.tell()
        return path, start

    def _compare(self, found: dict[str, Any]) -> None:
        ours = self._question
        if found != ours:
            other = next(name for name in {**ours, **found} if found.get(name) != ours.get(name))
            raise self.other(other)

    def other(self, name: str) -> InputError:
        """Return the error that parts depend on something that is not as it was."""
        return InputError(
            f"{self.path} holds finished parts of another question: its {name} is not the same.\n"
            "1. To go on, ask as before, in the same surroundings.\n"
            "2. To begin anew, remove that folder.\n"
            f"3. {self._instead}"
        )

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(
            f"finished parts cannot be kept in {self.path}: {error.strerror}.\n"
            "1. Make room there, and give the same command again: what is finished stays.\n"
            f"2. {self._instead}"
        )

    def _foreign(self) -> InputError:
        return InputError(
            f"{self.path} holds something else than finished parts.\n"
            "1. Move it away.\n"
            f"2. {self._instead}"
        )

    def _damaged(self, path: Path, place: int, name: str) -> InputError:
        """Take away what cannot be relied on, and say so."""
        try:
            os.truncate(path, place)
        except OSError as error:
            return self._unwritten(error)
        return InputError(
            f"{path} was damaged at byte {place}, where {name} stood: its checksum is not that of "
            "its bytes. What stood there and behind it in this file was removed.\n"
            "1. Give the same command again: what was removed is computed again."
        )


def _not_shown(path: Path | None, name: str) -> InputError:
    return InputError(
        f"{path} does not show what another process of the job has put there: {name}. "
        "Every host must see the same folder (shared storage)."
    )
