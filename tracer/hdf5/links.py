"""Links of an HDF5 file: a path may lead out of it."""

from __future__ import annotations

import h5py


def is_own(file: h5py.File, name: str) -> bool:
    """Return whether every part of a path is in the file itself: no link leads elsewhere."""
    parts = name.split("/")
    return all(
        isinstance(file.get("/".join(parts[: k + 1]), getlink=True), h5py.HardLink)
        for k in range(len(parts))
    )
