"""Tiny IDX files."""

from __future__ import annotations

import gzip
import struct

import numpy as np


def idx(array):
    """Return an array of bytes as an IDX file."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_idx(folder, part, count, *, zipped=False):
    """Write digits of noise, as MNIST's files are called; return images and labels."""
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data, end = idx(array), ".gz" if zipped else ""
        path = folder / f"{part}-{name}-ubyte{end}"
        path.write_bytes(gzip.compress(data) if zipped else data)
    return images, labels
