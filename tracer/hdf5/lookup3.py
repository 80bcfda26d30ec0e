"""Jenkins' lookup3: the checksum of HDF5's own blocks, of many blocks of one size at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Words = list[NDArray[np.uint32]]


def lookup3(blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the hash of every row of bytes.

    Args:
        blocks: (N, bytes), at least one byte.

    Returns:
        (N,). Source: Bob Jenkins, lookup3.c (2006), ``hashlittle`` from 0.
    """
    count, length = blocks.shape
    turns = -(-length // 12)
    padded = np.zeros((count, 12 * turns), np.uint8)
    padded[:, :length] = blocks
    words = np.ascontiguousarray(padded.view("<u4").T)
    state = [np.full(count, 0xDEADBEEF + length, np.uint32) for _ in range(3)]
    for turn in range(turns):
        state = [x + word for x, word in zip(state, words[3 * turn : 3 * turn + 3], strict=True)]
        state = _mix(*state) if turn + 1 < turns else _final(*state)
    return state[1]  # after seven turns the word that was changed last


def _rotated(x: NDArray[np.uint32], k: int) -> NDArray[np.uint32]:
    return (x << np.uint32(k)) | (x >> np.uint32(32 - k))


def _mix(a: NDArray[np.uint32], b: NDArray[np.uint32], c: NDArray[np.uint32]) -> _Words:
    for k in (4, 6, 8, 16, 19, 4):
        a, b, c = b, c + b, (a - c) ^ _rotated(c, k)
    return [a, b, c]


def _final(a: NDArray[np.uint32], b: NDArray[np.uint32], c: NDArray[np.uint32]) -> _Words:
    for k in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, (c ^ b) - _rotated(b, k), a
    return [a, b, c]
