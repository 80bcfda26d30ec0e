"""Links of an HDF5 file: a path may lead out of it."""

from __future__ import annotations

import h5py


def is_own(file: h5py.File, name: str) -> bool:
    """Return whether every part of a path is in the file itself: no link leads elsewhere."""
    parts, here = name.encode().split(b"/"), file.id
    paths = (b"/".join(parts[: k + 1]) for k in range(len(parts)))
    return all(
        path in here and here.links.get_info(path).type == h5py.h5l.TYPE_HARD for path in paths
    )
