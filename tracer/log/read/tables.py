"""The tables of a log that is read: what they must be is checked before they are believed.

A log may come from anywhere: sizes are compared with what the file holds before memory is taken,
and nothing is followed out of the file (external storage, links, filters that load code).
"""

from __future__ import annotations

import math
from array import array
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

_SHUFFLE, _DEFLATE, _ZSTD = 2, 1, 32015  # HDF5's numbers of the filters that a log has
# how many bytes one can become: 258 of two bits, 128 KiB of a block of 4 bytes
_RATIOS = {_SHUFFLE: 1, _DEFLATE: 1032, _ZSTD: 1 << 15}
# rows of other tables become Python objects: they may not be more than the file's own bytes
_FILTERS = {schema.WEIGHTS: {_SHUFFLE, _DEFLATE, _ZSTD}, schema.SNAP_BATCHES: {_SHUFFLE, _DEFLATE}}
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
        self._chunks: dict[str, Chunks] = {}
        for name, table in schema.TABLES.items():
            if name == schema.NORMS and not is_own(file, name):
                continue
            data = self._dataset(name)
            if data.dtype != table.dtype or data.ndim != 1 + table.wide:
                raise self.damage(name, f"has dtype {data.dtype} and {data.ndim} dimensions")
            chunk = 0 if data.chunks is None else np.prod(data.chunks) * data.dtype.itemsize
            if not 0 < chunk <= LARGEST_CHUNK:
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
        self._chunks.clear()
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
        try:
            self._require_stored(name, data, start, count)
            return np.asarray(data[start : start + count])
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise LogError(
                f"{self._path}: {where} cannot be read from {name} ({error}); the file is damaged, "
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
        data = self._file.get(name) if is_own(self._file, name) else None
        if not isinstance(data, h5py.Dataset):
            raise self.damage(name, "is missing, or a link leads to it")
        if data.is_virtual or data.external:
            raise self.damage(name, "keeps its data in other files")
        numbers = _filters(data)
        for number in numbers:
            if number not in _RATIOS:
                raise self.damage(name, f"needs the unknown HDF5 filter {number}")
            if number not in _FILTERS.get(name, ()):
                raise self.damage(name, f"has the HDF5 filter {number}, which no log has there")
        if sum(_RATIOS[number] > 1 for number in numbers) > 1:
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


class Chunks:
    """Which chunks of a dataset are stored, and in how many bytes.

    Args:
        data: The dataset.
        file_size: Bytes of its file, which all chunks together cannot exceed.
    """

    def __init__(self, data: h5py.Dataset, file_size: int) -> None:
        found = array("q")  # a chunk may take the file 8 bytes only: no objects are kept
        data.id.chunk_iter(lambda chunk: found.extend((chunk.chunk_offset[0], chunk.size)))
        table = np.array(found, np.int64).reshape(-1, 2)
        self._rows, self._sizes = table[np.argsort(table[:, 0], kind="stable")].T
        self._high, self._file_size = data.chunks[0], file_size
        self._across = math.prod(
            -(-width // columns)
            for width, columns in zip(data.shape[1:], data.chunks[1:], strict=True)
        )
        ratio = math.prod(_RATIOS[number] for number in _filters(data))
        self._least = math.prod(data.chunks) * data.dtype.itemsize / ratio

    def hold(self, start: int, count: int) -> bool:
        """Return whether rows are stored, in no fewer bytes than could become them."""
        first, last = start // self._high, (start + count - 1) // self._high
        a, b = np.searchsorted(self._rows, (first * self._high, start + count))
        sizes = self._sizes[a:b]
        return (
            len(sizes) == (last - first + 1) * self._across
            and bool((sizes >= self._least).all())
            and int(sizes.sum()) <= self._file_size
        )


def _filters(data: h5py.Dataset) -> list[int]:
    create = data.id.get_create_plist()
    return [create.get_filter(k)[0] for k in range(create.get_nfilters())]


def _is_layout(dtype: np.dtype[Any]) -> bool:
    if dtype.names != layout_dtype(1, 1).names:
        return False
    deepest = dtype["shape"].shape[:1] or (0,)
    return dtype == layout_dtype(dtype["name"].itemsize, *deepest)


def require_filters(path: Path, file: h5py.File) -> None:
    """Raise LogError if the parameters are coded with a filter that is not installed."""
    if _ZSTD in _filters(file[schema.WEIGHTS]):
        try:
            import hdf5plugin  # noqa: F401
        except ImportError as error:
            raise LogError(
                f"{path} is compressed with zstd; pip install 'tracin-replay[compress]' to read it."
            ) from error
