"""Opening a run log's file, or saying why it cannot be."""

from __future__ import annotations

from pathlib import Path

import h5py

from tracer import schema
from tracer.errors import LogError


def open_file(path: Path) -> h5py.File:
    """Open a run log's file, also one that is being written.

    Raises:
        LogError: It is missing, unreadable, no run log, or of a newer format.
    """
    file = _open(path)
    try:
        _check_format(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != schema.FORMAT:
        raise LogError(
            f"{path} is an HDF5 file but not a run log; expected one written by tracer.TracingSGD."
        )
    version = int(file.attrs["format_version"])
    if version > schema.FORMAT_VERSION:
        raise LogError(
            f"{path} has log format {version}, this version reads up to "
            f"{schema.FORMAT_VERSION}; upgrade tracin-replay."
        )


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise LogError(f"there is no log {path}; check the path.")
    if not path.is_file():
        raise LogError(f"{path} is not a file; expected a run log such as run.h5.")
    try:
        if not h5py.is_hdf5(path):
            raise LogError(f"{path} is not an HDF5 file; expected a run log written by tracer.")
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "truncated" in str(error):
                raise
            # still open for writing, or its writer was killed
            return h5py.File(path, "r", libver="latest", swmr=True)
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error}.") from error
