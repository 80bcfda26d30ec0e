"""Where finished parts lie on file, by name: an index of some 20 bytes for each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

_NUMBER = re.compile(r"\d+")
_NUMBERS, _OFFSETS = 40, 44  # bits of a part's number, and of its place in a file
_FEW = 1024  # parts that are looked up in a dict, at least


class Places:
    """Files and offsets by name.

    Names differ mostly by the first number in them. So a name is the number of its other words,
    and that number: one integer, in an array in order.
    """

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._files: dict[Path, int] = {}
        self._new: dict[int, int] = {}
        self._keys = self._places = np.zeros(0, np.int64)

    def __contains__(self, name: str) -> bool:
        return self._found(name) is not None

    def __getitem__(self, name: str) -> tuple[Path, int]:
        place = self._found(name)
        if place is None:
            raise KeyError(name)
        return list(self._files)[place >> _OFFSETS], place & ((1 << _OFFSETS) - 1)

    def __setitem__(self, name: str, place: tuple[Path, int]) -> None:
        path, offset = place
        file = self._files.setdefault(path, len(self._files))
        self._new[self._key(name)] = file << _OFFSETS | offset
        if len(self._new) > max(_FEW, len(self._keys) // 8):
            self._merge()

    def _key(self, name: str) -> int:
        found = _NUMBER.search(name)
        start, end = found.span() if found else (len(name), len(name))
        words = self._words.setdefault(f"{name[:start]}#{name[end:]}", len(self._words))
        return words << _NUMBERS | int(name[start:end] or 0)

    def _found(self, name: str) -> int | None:
        key = self._key(name)
        if key in self._new:
            return self._new[key]
        k = int(np.searchsorted(self._keys, key))
        return int(self._places[k]) if k < len(self._keys) and self._keys[k] == key else None

    def _merge(self) -> None:
        """Take what is new into the arrays; a name that stands there gets its new place."""
        keys = np.concatenate([np.fromiter(self._new, np.int64), self._keys])
        places = np.concatenate([np.fromiter(self._new.values(), np.int64), self._places])
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]
        self._new = {}
