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

from tracer.codec.layout import layout_dtype
from tracer.errors import LogError
from tracer.hdf5.chunk_index import LARGEST_CHUNK
from tracer.hdf5.links import is_own
from tracer.log import schema
from tracer.log.parts.seals import is_sealed
from tracer.log.read.ahead import Ahead
from tracer.log.read.chunks import DEFLATE, RATIOS, SHUFFLE, ZSTD, Chunks, filters_of

# rows of other tables become Python objects: they may not be more than the file's own bytes
_FILTERS = {schema.WEIGHTS: {SHUFFLE, DEFLATE, ZSTD}}
_FILTERS |= {name: {SHUFFLE, DEFLATE} for name, kind in schema.TABLES.items() if kind.deflated}
_LARGEST_LAYOUT = 1 << 28
_LITTLE = 1 << 20  # bytes that may be asked for in any case


class LogTables:
    """The datasets of one open log.

    Args:
        path: The log, for messages.
        file: The open file.

    Attributes:
        path: Likewise.
        strings: Whether IDs are strings, as the status was last.

    Raises:
        LogError: A table is missing or is not what a log has.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file, self.strings = path, file, False
        self._data: dict[str, h5py.Dataset] = {}
        self._chunks: dict[str, Chunks] = {}
        self._ahead: dict[str, Ahead] = {}
        for name, table in schema.TABLES.items():
            data = self._dataset(name)
            if data.dtype != table.dtype or data.ndim != 1 + (table.width is not None):
                raise self.damage(name, f"has dtype {data.dtype} and {data.ndim} dimensions")
            chunk = 0 if data.chunks is None else np.prod(data.chunks) * data.dtype.itemsize
            if not 0 < chunk <= LARGEST_CHUNK:
                raise self.damage(name, f"is stored in pieces of {data.chunks}")
            self._data[name] = data
        status = self._dataset(schema.STATUS)
        if status.dtype != schema.STATUS_DTYPE or status.shape != (1,):
            raise self.damage(schema.STATUS, "is not one row of status")
        self._data[schema.STATUS] = status

    def status(self) -> Any:
        """Return the status row."""
        for _ in range(100):  # a live writer may be at it
            row = self.rows(schema.STATUS, 0, 1, "the status")
            if is_sealed(row):
                self.strings = bool(row[0]["strings"])
                return row[0]
        raise self.damage(schema.STATUS, "does not match its checksum")

    def damage(self, name: str, what: str) -> LogError:
        """Return the error for a table that is not as it must be."""
        return LogError(f"{self.path} is a damaged run log: {name} {what}; restore it from a copy.")

    def broken(self, t: int, name: str) -> LogError:
        """Return the error for a step whose rows do not match their checksum."""
        return LogError(
            f"{self.path}: the record of step {t} ({name}) does not match its checksum; the file "
            "is damaged, restore it from a copy."
        )

    def refresh(self) -> None:
        """See what a live writer has added."""
        for rows in self._ahead.values():
            rows.forget()  # what was read before may have been replaced
        self._chunks.clear()
        for data in self._data.values():
            data.refresh()

    def length(self, name: str) -> int:
        """Return how many rows a table has."""
        return int(self._data[name].shape[0])

    def width(self, name: str) -> int:
        """Return the columns of a wide table."""
        return int(self._data[name].shape[1])

    def ahead(self, name: str) -> Ahead:
        """Return a table that is read in blocks."""
        if name not in self._ahead:
            self._ahead[name] = Ahead(self, name)
        return self._ahead[name]

    def checked(
        self, name: str, start: int, count: int, where: str, *, crc: int, before: int
    ) -> NDArray[Any]:
        """Return some rows of a table that is read in blocks; see ``Ahead.checked``."""
        return self.ahead(name).checked(start, count, where, crc, before)

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
                f"{self.path}: {where} points at rows {start} to {start + count} of {name}, which "
                f"has {data.shape[0]}; the file is damaged, restore it from a copy."
            )
        try:
            self._require_stored(name, data, start, count)
            return np.asarray(data[start : start + count])
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise LogError(
                f"{self.path}: {where} cannot be read from {name} ({error}); the file is damaged, "
                "restore it from a copy."
            ) from error

    def layout(self, name: str) -> NDArray[Any]:
        """Return a layout table."""
        data = self._dataset(name)
        if data.ndim != 1 or data.nbytes > _LARGEST_LAYOUT or not _is_layout(data.dtype):
            raise self.damage(name, "is not a table of tensors")
        self._require_stored(name, data, 0, len(data))
        return np.asarray(data[:])

    def _dataset(self, name: str) -> h5py.Dataset:
        data = self._file[name] if is_own(self._file, name) else None
        if not isinstance(data, h5py.Dataset):
            raise self.damage(name, "is missing, or a link leads to it")
        if data.is_virtual or data.external:
            raise self.damage(name, "keeps its data in other files")
        numbers = filters_of(data)
        for number in numbers:
            if number not in RATIOS:
                raise self.damage(name, f"needs the unknown HDF5 filter {number}")
            if number not in _FILTERS.get(name, ()):
                raise self.damage(name, f"has the HDF5 filter {number}, which no log has there")
        if sum(RATIOS[number] > 1 for number in numbers) > 1:
            raise self.damage(name, "is compressed more than once")
        if data.dtype.hasobject:
            raise self.damage(name, "has elements of variable length")
        return data

    def _require_stored(self, name: str, data: h5py.Dataset, start: int, count: int) -> None:
        """Raise LogError before more memory is asked for than the file can fill."""
        size = count * data.dtype.itemsize * math.prod(data.shape[1:])
        if size <= _LITTLE:
            return
        if data.chunks is None:
            held = size <= min(data.id.get_storage_size(), self._file.id.get_filesize())
        else:
            if name not in self._chunks:
                self._chunks[name] = Chunks(data, self._file.id.get_filesize())
            held = self._chunks[name].hold(start, count)
        if not held:
            raise self.damage(name, f"claims {size} bytes that the file does not hold")


def _is_layout(dtype: np.dtype[Any]) -> bool:
    if dtype.names != layout_dtype(1, 1).names:
        return False
    deepest = dtype["shape"].shape[:1] or (0,)
    return dtype == layout_dtype(dtype["name"].itemsize, *deepest)


def require_filters(path: Path, file: h5py.File) -> None:
    """Raise LogError if the parameters are coded with a filter that is not installed."""
    if ZSTD in filters_of(file[schema.WEIGHTS]):
        try:
            import hdf5plugin  # noqa: F401
        except ImportError as error:
            raise LogError(
                f"{path} is compressed with zstd; pip install 'tracin-replay[compress]' to read it."
            ) from error
