"""The metadata of a run: attributes of the log's root, under a checksum that is one of them.

Text is of fixed length: HDF5 keeps text of variable length in a heap, which hangs if it is damaged.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

CHECKSUM = "attributes_crc"
_Value: TypeAlias = NDArray[Any]
_LARGEST = 1 << 20  # bytes


def write(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Write attributes of a new log, and their checksum."""
    for name, value in values.items():
        text = isinstance(value, str)
        file.attrs[name] = np.bytes_(value.encode() or b"\0") if text else value
    seal(file)


def seal(file: h5py.File) -> None:
    """Give the attributes their checksum."""
    file.attrs[CHECKSUM] = _checksum(dict(_plain(file)))


def read(file: h5py.File) -> dict[str, Any]:
    """Return a file's attributes: numbers and text of fixed length; others are left out."""
    return sealed(file)[0]


def sealed(file: h5py.File) -> tuple[dict[str, Any], bool]:
    """Return the same, and whether the attributes match their checksum."""
    found = dict(_plain(file))
    values = {
        name: value.tobytes().decode(errors="replace").rstrip("\0")
        if value.dtype.kind == "S"
        else value.item()
        for name, value in found.items()
    }
    return values, values.get(CHECKSUM) == _checksum(found)


def _checksum(values: Mapping[str, _Value]) -> int:
    """Return the checksum of all attributes but itself: their names, types and bytes, by name."""
    crc = 0
    for name, value in sorted(values.items()):
        if name != CHECKSUM:
            head = f"{name}\0{value.dtype.str}\0".encode(errors="surrogateescape")
            crc = zlib.crc32(value.tobytes(), zlib.crc32(head, crc))
    return crc


def _plain(file: h5py.File) -> Iterator[tuple[str, _Value]]:
    attributes = file.attrs
    for name in attributes:
        attribute = attributes.get_id(name)
        if attribute.get_storage_size() > _LARGEST or attribute.shape != ():
            continue
        if attribute.dtype.kind in "Sbiuf":
            value = np.empty((), attribute.dtype)
            attribute.read(value)
            yield name, value
