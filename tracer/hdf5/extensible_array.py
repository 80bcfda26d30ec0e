"""HDF5's extensible array, which holds the addresses of a growing dataset's chunks, mended.

A header points at an index block, that one at data blocks and at secondary blocks, which point at
further data blocks; large ones are in pages. Each part has a checksum and is written anew when an
entry is added. Source: HDF5 File Format Specification, version 3.0, section VII.D.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tracer.hdf5.patches import FIRST, PAGE, DamagedError, Patches, UnbornError, number, torn

UNDEFINED = 0xFFFFFFFFFFFFFFFF  # no address
_PREFIX = 14  # signature, version, client, address of the header


class ExtensibleArray:
    """The extensible array of one dataset.

    Args:
        address: Of its header.
        count: How many chunks the dataset has, one row of chunks after the other.
        chunk_bytes: What one takes if no filter makes it smaller.
        patches: Where changes are noted.

    Raises:
        UnbornError: There is none.
        DamagedError: It is none.
    """

    def __init__(self, address: int, count: int, chunk_bytes: int, patches: Patches) -> None:
        self._patches = patches
        self._count, self._chunk_bytes = count, chunk_bytes
        self._start = np.array([address], np.uint64)
        self._header = patches.block(address, 72)
        header = self._header.tobytes()
        if not any(header[:5]):
            raise UnbornError
        if header[:5] != b"EAHD\0" or torn(self._start, self._header[None]).any():
            raise DamagedError
        self._client, self._width, bits, self._direct, least, self._pointers, page = header[5:12]
        self._id = bytes([self._client]) + address.to_bytes(8, "little")
        self._page, self._offset_bytes = 1 << page, -(-bits // 8)
        levels = 1 + bits - int(math.log2(max(1, least)))
        known = 8 if self._client == 0 else 13 <= self._width <= 20 and self._width
        if self._width != known or self._pointers < 1 or levels < 1 or bits > 60:
            raise DamagedError
        # data blocks of each level: how many, entries in each
        self._levels = [(1 << (k // 2), least << ((k + 1) // 2)) for k in range(levels)]

    def mend(self) -> None:
        """Note what must be changed."""
        address = number(self._header[60:68])
        if address != UNDEFINED:
            try:
                self._index_block(address)
            except UnbornError:
                self._header[60:68] = 0xFF
        self._patches.seal(self._start, self._header[None])

    def _index_block(self, address: int) -> None:
        """Mend the block that has the first entries, and points at the first data blocks."""
        near = 2 * int(math.log2(self._pointers))  # levels whose data blocks it points at itself
        data = sum(count for count, _ in self._levels[:near])
        at = _PREFIX + self._direct * self._width
        block = self._block(b"EAIB", address, at + 8 * (data + len(self._levels[near:])) + 4)
        here = np.array([address], np.uint64)
        self._entries(block[None], here, _PREFIX, at, np.array([0]))
        first = self._direct
        for level, (count, entries) in enumerate(self._levels):
            if level < near:
                pointers = block[at : at + 8 * count]
                self._data_blocks(pointers, entries, first)
                at += 8 * count
            else:
                pointer = block[at : at + 8]
                there = number(pointer)
                if there != UNDEFINED:
                    try:
                        self._secondary_block(there, count, entries, first)
                    except UnbornError:
                        pointer[:] = 0xFF
                at += 8
            first += count * entries
        self._patches.seal(here, block[None])

    def _secondary_block(self, address: int, count: int, entries: int, first: int) -> None:
        """Mend a block that points at data blocks, and says which of their pages there are."""
        start = _PREFIX + self._offset_bytes
        pages = entries // self._page if entries > self._page else 0
        at = start + count * -(-pages // 8)
        block = self._block(b"EASB", address, at + 8 * count + 4)
        here = np.array([address], np.uint64)
        mixed = torn(here, block[None])
        bits = np.unpackbits(block[start:at])[: count * pages]  # those of all blocks in a row
        written = bits.reshape(count, pages).astype(bool)
        self._data_blocks(block[at:-4], entries, first, written)
        written[block[at:-4].copy().view("<u8") == UNDEFINED] = False
        bits = np.packbits(written)
        block[start : start + len(bits)] = bits
        self._patches.seal(here, block[None], mixed)

    def _data_blocks(
        self,
        pointers: NDArray[np.uint8],
        entries: int,
        first: int,
        written: NDArray[np.bool_] | None = None,
    ) -> None:
        """Mend data blocks of one size; pointers at what is none are cleared, in their place."""
        head = _PREFIX + self._offset_bytes
        paged = entries > self._page
        pages, each = (entries // self._page, self._page) if paged else (1, entries)
        size = head + 4 * paged + pages * (each * self._width + 4)
        addresses = pointers.copy().view("<u8")
        there = np.flatnonzero(addresses != UNDEFINED)
        if len(there) * size > self._patches.size:
            raise DamagedError
        found, blocks = [], []
        for k in there:
            try:
                blocks.append(self._block(b"EADB", int(addresses[k]), size))
                found.append(k)
            except UnbornError:
                pointers[8 * k : 8 * k + 8] = 0xFF
        if not found:
            return
        data, starts = np.stack(blocks), addresses[found]
        firsts = first + np.array(found) * entries
        if paged:
            assert written is not None
            block, page = np.nonzero(written[found])
            length = each * self._width + 4
            data = data[:, head + 4 :].reshape(len(data), pages, length)[block, page]
            starts = starts[block] + (head + 4 + page * length).astype(np.uint64)
            firsts, head = firsts[block] + page * each, 0
        mixed = self._entries(data, starts, head, data.shape[1] - 4, firsts)
        self._patches.seal(starts, data, mixed)

    def _entries(
        self,
        parts: NDArray[np.uint8],
        starts: NDArray[np.uint64],
        begin: int,
        end: int,
        firsts: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Clear entries, in place, of chunks that cannot be: the dataset or the file ends before.

        Args:
            parts: (parts, bytes), each with its checksum.
            starts: (parts,) addresses.
            begin: Where the entries of each begin.
            end: Where they end.
            firsts: (parts,) numbers of their first chunks.

        Returns:
            (parts,) which do not match their checksum.
        """
        entries = parts[:, begin:end].reshape(len(parts), -1, self._width)
        addresses = entries[..., :8].copy().view("<u8")[..., 0]
        sizes = np.full(addresses.shape, self._chunk_bytes, np.uint64)
        if self._client:  # filtered: the size is stored, then the mask of filters
            padded = np.zeros((*addresses.shape, 8), np.uint8)
            padded[..., : self._width - 12] = entries[..., 8:-4]
            sizes = padded.view("<u8")[..., 0]
        order = np.arange(addresses.shape[1])
        kept = (addresses != UNDEFINED) & (firsts[:, None] + order < self._count)
        kept &= (addresses >= FIRST) & (addresses < self._patches.size)
        kept &= (sizes > 0) & (sizes <= 2 * self._chunk_bytes + FIRST)
        mixed = torn(starts, parts)
        # one of its pages never reached the disk: it was not there at the last sync
        kept &= ~(mixed & (addresses == 0).any(1))[:, None]
        # an entry across two pages, of which the first is older: it has no first bytes
        before = PAGE - (starts[:, None].astype(np.int64) + begin + order * self._width) % PAGE
        for part, k in np.argwhere(mixed[:, None] & (before < self._width)):
            kept[part, k] &= bool((entries[part, k, : min(8, before[part, k])] != 0xFF).any())
        if kept.any():
            self._patches.end = max(self._patches.end, int((addresses + sizes)[kept].max()))
        entries[~kept, :8], entries[~kept, 8:] = 0xFF, 0
        parts[:, begin:end] = entries.reshape(len(parts), -1)
        return mixed

    def _block(self, signature: bytes, address: int, size: int) -> NDArray[np.uint8]:
        """Return one of the array's blocks."""
        block = self._patches.block(address, size)
        if not block[:_PREFIX].any():
            raise UnbornError
        if block[:_PREFIX].tobytes() != signature + b"\0" + self._id:
            raise DamagedError
        return block
