"""The index of a growing HDF5 dataset, mended where its last writes reached the disk in part.

A power cut leaves any of the pages written since the last sync as they were at some moment, and a
kill may end a write in the middle. Then

- a part of the index can be half old, half new: each entry is right, the checksum is not;
- a part can be pointed at that never reached the disk, so that zeros are there: the pointer is
  cleared;
- an entry can be of a chunk beyond the dataset's end or the file's, which a writer that goes on
  would take for its own though the space may be another's: it is cleared.

That is what a writer would have left who had stopped earlier; whether the chunks hold whole steps,
the steps' own checksums say. What else is wrong is damage, and stays as it is: HDF5 will say so.
"""

from __future__ import annotations

import math

import h5py
import numpy as np
from h5py import h5g
from numpy.typing import NDArray

from tracer.hdf5.extensible_array import UNDEFINED, ExtensibleArray
from tracer.hdf5.patches import Patches, UnbornError, number

_LAYOUT = 8  # number of the message
_CHUNKED, _EXTENSIBLE = 2, 4
_LARGEST_HEADER = 1 << 16
LARGEST_CHUNK = 1 << 24  # bytes, more than any table's of ours


def mend(file: h5py.File, name: str, patches: Patches) -> None:
    """Note what a dataset's index must be changed in; nothing if it is whole or of another kind.

    Args:
        file: The file as it is; HDF5 has not read the index.
        name: The dataset.
        patches: Where the changes are noted.

    Raises:
        DamagedError: It is neither whole nor what a power cut leaves.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.chunks is None:
        return
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if size > LARGEST_CHUNK:
        return  # no table of a log
    header = h5g.get_objinfo(file.id, name.encode()).objno[0]  # h5o.get_info reads the index
    place = _layout(header, patches)
    if place is None:
        return
    block, at = place
    address = number(block[at : at + 8])
    if address == UNDEFINED:
        return
    try:
        count = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
        array = ExtensibleArray(address, count, size, patches)
    except UnbornError:  # a pointer at what never reached the disk
        block[at : at + 8] = 0xFF
        patches.seal(np.array([header], np.uint64), block[None])
    else:
        array.mend()


def _layout(address: int, patches: Patches) -> tuple[NDArray[np.uint8], int] | None:
    """Find where an object header says where a dataset's extensible array is.

    Returns:
        The header's bytes, and the offset in them. Source: HDF5 File Format Specification, version
        3.0, sections IV.A.1.b (object header version 2) and IV.A.2.i (layout).
    """
    head = patches.block(address, 64)
    if head[:5].tobytes() != b"OHDR\x02":
        return None
    flags = int(head[5])
    start = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    size = number(head[start : start + width])
    if size > _LARGEST_HEADER:
        return None
    block, offset = patches.block(address, start + width + size + 4), start + width
    message = 4 + 2 * bool(flags & 4)  # bytes of its own header
    while offset + message <= len(block) - 4:
        kind, size = int(block[offset]), number(block[offset + 1 : offset + 3])
        offset += message
        data = block[offset : offset + size]
        if kind == _LAYOUT and size > 5 and data[0] in (4, 5) and data[1] == _CHUNKED:
            index = 5 + int(data[3]) * int(data[4])
            if len(data) == index + 14 and data[index] == _EXTENSIBLE:
                return block, offset + index + 6
        offset += size
    return None
