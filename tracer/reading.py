"""The tables of a log that is read: what they must be is checked before they are believed.

A log may come from anywhere: sizes are compared with what the file holds before memory is taken,
and nothing is followed out of the file (external storage, links, filters that load code).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tracer import schema
from tracer.errors import LogError

_FILTERS = {1: "deflate", 2: "shuffle", 32000: "lzf", 32015: "zstd"}
_LARGEST_CHUNK = 1 << 24
_LARGEST_RATIO = 70_000  # what zstd can make of zeros
_LARGEST_LAYOUT = 1 << 28
_LITTLE = 1 << 20  # bytes that may be asked for in any case


class LogTables:
    """The datasets of one open log.

    Args:
        path: The log, for messages.
        file: The open file.

    Raises:
        LogError: A table is missing or is not what a log has.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file, self.refreshed = path, file, 0
        self._data: dict[str, h5py.Dataset] = {}
        for name, table in schema.TABLES.items():
            if name == schema.NORMS and name not in file:
                continue
            data = self._dataset(name)
            if data.dtype != table.dtype or data.ndim != 1 + table.wide:
                raise self.damage(name, f"has dtype {data.dtype} and {data.ndim} dimensions")
            if data.chunks is None or np.prod(data.chunks) * data.dtype.itemsize > _LARGEST_CHUNK:
                raise self.damage(name, f"is stored in pieces of {data.chunks}")
            self._data[name] = data
        status = self._dataset(schema.STATUS)
        if status.dtype != schema.STATUS_DTYPE or status.shape != (1,):
            raise self.damage(schema.STATUS, "is not one row of status")
        self._data[schema.STATUS] = status

    def damage(self, name: str, what: str) -> LogError:
        """Return the error for a table that is not as it must be."""
        return LogError(
            f"{self._path} is a damaged run log: {name} {what}; restore it from a copy."
        )

    def refresh(self) -> None:
        """See what a live writer has added."""
        self.refreshed += 1  # what was read before may have been replaced
        for data in self._data.values():
            data.refresh()

    def has(self, name: str) -> bool:
        """Return whether the log has a table."""
        return name in self._data

    def length(self, name: str) -> int:
        """Return how many rows a table has."""
        return int(self._data[name].shape[0])

    def width(self, name: str) -> int:
        """Return the columns of a wide table."""
        return int(self._data[name].shape[1])

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a table."""
        return self._data[name]

    def rows(self, name: str, start: int, count: int, where: str) -> NDArray[Any]:
        """Return some rows of a table.

        Args:
            name: The table.
            start: The first.
            count: How many.
            where: The step or whatever asks, for messages.

        Raises:
            LogError: They are not there, or cannot be read.
        """
        start, count = int(start), int(count)
        data = self._data[name]
        if start < 0 or count < 0 or start + count > data.shape[0]:
            raise LogError(
                f"{self._path}: {where} points at rows {start} to {start + count} of {name}, which "
                f"has {data.shape[0]}; the file is damaged, restore it from a copy."
            )
        self._require_stored(name, data, count)
        try:
            return np.asarray(data[start : start + count])
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise LogError(
                f"{self._path}: {where} cannot be read from {name} ({error}); the file is damaged, "
                "restore it from a copy."
            ) from error

    def layout(self, name: str) -> NDArray[Any]:
        """Return a layout table."""
        data = self._dataset(name)
        names = ("name", "offset", "dims", "shape", "dtype")
        if data.dtype.names != names or data.ndim != 1 or data.nbytes > _LARGEST_LAYOUT:
            raise self.damage(name, "is not a table of tensors")
        self._require_stored(name, data, len(data))
        return np.asarray(data[:])

    def _dataset(self, name: str) -> h5py.Dataset:
        link = self._file.get(name, getlink=True)
        data = self._file.get(name) if isinstance(link, h5py.HardLink) else None
        if not isinstance(data, h5py.Dataset):
            raise self.damage(name, "is missing")
        create = data.id.get_create_plist()
        if data.is_virtual or data.external:
            raise self.damage(name, "keeps its data in other files")
        for k in range(create.get_nfilters()):
            number = create.get_filter(k)[0]
            if number not in _FILTERS:
                raise self.damage(name, f"needs the unknown HDF5 filter {number}")
        if data.dtype.hasobject:
            raise self.damage(name, "has elements of variable length")
        return data

    def _require_stored(self, name: str, data: h5py.Dataset, count: int) -> None:
        """Raise LogError before more memory is asked for than the file can fill."""
        row = data.dtype.itemsize * math.prod(data.shape[1:])
        if count * row <= _LITTLE:
            return
        filtered = data.id.get_create_plist().get_nfilters() > 0
        if count * row > data.id.get_storage_size() * (_LARGEST_RATIO if filtered else 1):
            raise self.damage(name, f"claims {count * row} bytes that the file does not hold")


def require_filters(path: Path, file: h5py.File) -> None:
    """Raise LogError if the parameters are coded with a filter that is not installed."""
    create = file[schema.WEIGHTS].id.get_create_plist()
    numbers = [create.get_filter(k)[0] for k in range(create.get_nfilters())]
    if 32015 in numbers:
        try:
            import hdf5plugin  # noqa: F401
        except ImportError as error:
            raise LogError(
                f"{path} is compressed with zstd; pip install 'tracin-replay[compress]' to read it."
            ) from error
