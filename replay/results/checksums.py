"""Checksums of a result: of each variable, of each list of IDs, and of the attributes.

Results of version 0 have none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECKSUM = "crc32"  # an attribute of each dataset, and of the root for the other attributes


def of_values(values: NDArray[Any]) -> int:
    """Return the checksum of numbers, of their bytes; or of text, of UTF-8 behind its lengths."""
    if values.dtype.kind != "O":
        return zlib.crc32(np.ascontiguousarray(values).data)
    texts = [one if isinstance(one, bytes) else str(one).encode() for one in values.tolist()]
    lengths = np.array([len(text) for text in texts], "<i8")
    return zlib.crc32(b"".join(texts), zlib.crc32(lengths.tobytes()))


def of_attributes(attributes: Mapping[str, Any]) -> int:
    """Return the checksum of plain values by name: of their JSON, sorted by name."""
    own = {name: value for name, value in attributes.items() if name != CHECKSUM}
    return zlib.crc32(json.dumps(own, sort_keys=True).encode())
