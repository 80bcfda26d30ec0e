"""A result file put together in memory, and then written as bytes.

HDF5 ends the interpreter when the disk has no room for what it writes at closing, so it never
sees the disk. Only its own structures are held in pages; the large arrays stay where they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p
from numpy.typing import NDArray

_PAGE = 1 << 16
_PIECE = 1 << 26  # bytes a write: Ctrl-C is heard between them


class Image(io.RawIOBase):
    """The bytes of a file that HDF5 makes, but for the arrays that it is told of.

    Attributes:
        size: Of the file.
    """

    def __init__(self) -> None:
        self.size = self._position = 0
        self._pages: dict[int, bytearray] = {}
        self._arrays: list[tuple[int, NDArray[Any]]] = []

    def add(self, file: h5py.File, name: str, values: NDArray[Any]) -> h5py.Dataset:
        """Give the file a dataset; the array is written by ``save`` and must not change before."""
        create = h5p.create(h5p.DATASET_CREATE)
        create.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        create.set_fill_time(h5d.FILL_TIME_NEVER)
        stored = file.create_dataset(name, values.shape, values.dtype, dcpl=create)
        if values.size:
            self._arrays.append((stored.id.get_offset(), np.ascontiguousarray(values)))
        return stored

    def save(self, path: Path) -> None:
        """Write everything to a new file, and force it to the disk.

        Raises:
            OSError: There is no room, or a file has that name.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(descriptor, self.size)
            for number, page in sorted(self._pages.items()):
                start = number * _PAGE
                _write(descriptor, start, memoryview(page)[: max(0, self.size - start)])
            for offset, values in self._arrays:
                _write(descriptor, offset, values.reshape(-1).view(np.uint8).data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Take bytes at the position."""
        source = memoryview(data).cast("B")
        for page, place, piece in self._spans(len(source)):
            page[place] = source[piece]
        self.size = max(self.size, self._position)
        return len(source)

    def readinto(self, buffer: Any) -> int:
        """Give bytes from the position; what was not written is zero."""
        target = memoryview(buffer).cast("B")
        for page, place, piece in self._spans(len(target)):
            target[piece] = page[place]
        return len(target)

    def _spans(self, count: int) -> Iterator[tuple[bytearray, slice, slice]]:
        """Yield pages, the part of each, and which of ``count`` bytes it is; move on."""
        done = 0
        while done < count:
            number, at = divmod(self._position, _PAGE)
            size = min(_PAGE - at, count - done)
            page = self._pages.setdefault(number, bytearray(_PAGE))
            yield page, slice(at, at + size), slice(done, done + size)
            done += size
            self._position += size


def _write(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _PIECE], offset + done)
