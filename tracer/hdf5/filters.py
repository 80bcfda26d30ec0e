"""HDF5's compression filters for the rows of parameters."""

from __future__ import annotations

import importlib.util
from typing import Any


def has_zstd() -> bool:
    """Return whether the extra ``compress`` is installed."""
    return importlib.util.find_spec("hdf5plugin") is not None


def filters(encoding: str) -> dict[str, Any]:
    """Return HDF5's options for the rows: zstd if the extra is installed, else deflate."""
    if encoding == "none":
        return {}
    if not has_zstd():
        return {"compression": "gzip", "compression_opts": 1}
    import hdf5plugin

    return dict(hdf5plugin.Zstd(clevel=1))
