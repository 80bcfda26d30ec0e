"""Where tables are while they fill: in memory, or in files where memory has no room for them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tracer.errors import InputError


class Room:
    """Memory for some tables, and a folder for others.

    Args:
        budget: Bytes that tables may take in memory; None is as many as they need.
        folder: Where larger ones go, in files without a name that end with the process.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self._left, self._folder = budget, folder

    def zeros(self, shape: int | Sequence[int], dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Return a table of zeros.

        Raises:
            InputError: There is no room for it, in memory or on the disk.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._left is None or size <= self._left or size == 0:
            self._left = None if self._left is None else self._left - size
            return np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                return np.memmap(file, dtype, "w+", shape=shape)  # type: ignore[call-overload, no-any-return]
        except OSError as error:
            raise InputError(
                f"a table of {size:,} bytes fits neither into the memory given nor into "
                f"{self._folder}: {error.strerror}.\n"
                "1. Ask for fewer examples: train_ids=, or fewer test examples.\n"
                "2. Let the result stand where there is room: --out."
            ) from error
