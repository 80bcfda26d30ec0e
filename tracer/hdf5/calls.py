"""Whether a thread is inside of HDF5, whose lock every other thread waits for."""

from __future__ import annotations

from h5py._objects import phil


def inside_hdf5() -> bool:
    """Return whether this thread is in a call of HDF5; True if h5py does not say."""
    owned = getattr(phil, "_is_owned", None)
    return owned is None or bool(owned())
