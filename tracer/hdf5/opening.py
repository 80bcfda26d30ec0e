"""Opening an HDF5 file, also where the file system has no locks."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import h5py

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_MIXED = "file locking flag"  # this process has the file open in the other way


def open_hdf5(path: Path, mode: str, **options: Any) -> h5py.File:
    """Open a file; without HDF5's own lock only where there are none (NFS, some FUSE)."""
    try:
        return h5py.File(path, mode, **options)
    except OSError as error:
        if error.errno not in NO_LOCKS and _MIXED not in str(error):
            raise
        return h5py.File(path, mode, locking=False, **options)
