"""Which chunks of a dataset a file stores, and how much may have become of them."""

from __future__ import annotations

import math
from array import array

import h5py
import numpy as np

SHUFFLE, DEFLATE, ZSTD = 2, 1, 32015  # HDF5's numbers of the filters that a log has
# how many bytes one can become: 258 of two bits, 128 KiB of a block of 4 bytes
RATIOS = {SHUFFLE: 1, DEFLATE: 1032, ZSTD: 1 << 15}


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
        ratio = math.prod(RATIOS[number] for number in filters_of(data))
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


def filters_of(data: h5py.Dataset) -> list[int]:
    """Return HDF5's numbers of a dataset's filters."""
    create = data.id.get_create_plist()
    return [create.get_filter(k)[0] for k in range(create.get_nfilters())]
