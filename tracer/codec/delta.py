"""Lossless coding of the rows of parameters: each as its difference to a prediction.

A row's elements are taken as integers in the order of the floats that they spell, the prediction
is subtracted, the sign is folded into the lowest bit, and the bytes of equal weight are put
together; what is left is mostly zeros, for HDF5's filter to squeeze. The prediction is the row
before, moved on by ``momentum`` times its last move. Every 64th row is stored plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.codec.layout import Field, Row

ENCODINGS = ("none", "delta")
KEYFRAME_EVERY = 64


class Coder:
    """Codes rows one after the other.

    Args:
        layout: Of a row.
        encoding: ``"none"`` or ``"delta"``.
        momentum: Share of the last move that the prediction repeats.
        keyframe_every: Rows from one that is stored plain to the next.
    """

    def __init__(
        self, layout: Sequence[Field], encoding: str, momentum: float, keyframe_every: int
    ) -> None:
        if encoding not in ENCODINGS or keyframe_every < 1:
            raise ValueError(f"unknown encoding {encoding!r}, keyframe every {keyframe_every}")
        self._spans = _spans(layout) if encoding == "delta" else None
        self._momentum, self._every = float(momentum), keyframe_every
        self._rows: dict[int, Row] = {}  # the last ones, by number

    def encode(self, t: int, row: Row) -> Row:
        """Return row ``t`` as it is stored; rows come in order, the last one perhaps again."""
        if self._spans is None:
            return row
        predicted = self._prediction(t)
        self._keep(t, row.copy())
        return row if predicted is None else _coded(row, predicted, self._spans)

    def decode(self, t: int, stored: Row) -> Row:
        """Return row ``t``; the row before was decoded last, or ``t`` begins at a keyframe."""
        if self._spans is None:
            return stored
        predicted = self._prediction(t)
        row = stored if predicted is None else _decoded(stored, predicted, self._spans)
        self._keep(t, row)
        return row

    def read(self, t: int, load: Callable[[int], Row]) -> Row:
        """Return row ``t``, the caller's, decoding those that it builds on.

        Args:
            t: Its number.
            load: Gives a stored row, a new array.
        """
        if self._spans is None:
            return load(t)
        if t in self._rows:
            return self._rows[t].copy()
        first = t - t % self._every
        if t - 1 in self._rows and max(t - 2, first) in self._rows:
            first = t
        for k in range(first, t + 1):
            row = self.decode(k, load(k))
        return row.copy()

    def restore(self, t: int, load: Callable[[int], Row]) -> None:
        """Be as after row ``t`` was encoded."""
        if self._spans is not None:
            self.read(t, load)

    def forget(self) -> None:
        """Decode anew: a live writer may have replaced its last row."""
        self._rows = {}

    def _keep(self, t: int, row: Row) -> None:
        self._rows = {k: r for k, r in self._rows.items() if t - 2 <= k < t}
        self._rows[t] = row

    def _prediction(self, t: int) -> Row | None:
        if t % self._every == 0:
            return None
        last = self._rows[t - 1]
        if not self._momentum or t % self._every == 1:
            return last
        return _moved_on(last, self._rows[t - 2], self._momentum, self._spans or [])


Span = tuple[int, int, "np.dtype[Any]", bool]  # begin, end, integer type, whether floats


def _spans(layout: Sequence[Field]) -> list[Span]:
    """Join neighbouring tensors of one type."""
    spans: list[Span] = []
    for field in layout:
        if not field.nbytes:
            continue
        parts = 2 if field.dtype.is_complex else 1
        kind = np.dtype(f"<i{field.dtype.itemsize // parts}")
        real = field.dtype.is_floating_point or field.dtype.is_complex
        if spans and spans[-1][1] == field.offset and spans[-1][2:] == (kind, real):
            spans[-1] = (spans[-1][0], field.end, kind, real)
        else:
            spans.append((field.offset, field.end, kind, real))
    return spans


def _ordered(values: NDArray[Any], real: bool) -> NDArray[Any]:
    """Map the bits of floats to integers of the same order; its own inverse."""
    if not real:
        return values
    bits = 8 * values.dtype.itemsize
    return np.asarray(values ^ ((values >> (bits - 1)) & np.iinfo(values.dtype).max))


def _coded(row: Row, predicted: Row, spans: list[Span]) -> Row:
    out = row.copy()
    for begin, end, kind, real in spans:
        bits = 8 * kind.itemsize
        values = _ordered(row[begin:end].view(kind), real)
        change = values - _ordered(predicted[begin:end].view(kind), real)
        folded = (change << 1) ^ (change >> (bits - 1))
        out[begin:end] = folded.view(np.uint8).reshape(-1, kind.itemsize).T.reshape(-1)
    return out


def _decoded(stored: Row, predicted: Row, spans: list[Span]) -> Row:
    out = stored.copy()
    for begin, end, kind, real in spans:
        planes = stored[begin:end].reshape(kind.itemsize, -1)
        folded = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{kind.itemsize}")
        change = (folded >> 1).view(kind) ^ -(folded & 1).view(kind)
        values = change + _ordered(predicted[begin:end].view(kind), real)
        out[begin:end] = _ordered(values, real).view(np.uint8)
    return out


def _moved_on(last: Row, before: Row, momentum: float, spans: list[Span]) -> Row:
    """Return ``last + momentum (last − before)``, the same bits on every machine."""
    out = last.copy()
    for begin, end, kind, real in spans:
        if not real or kind.itemsize == 1:
            continue
        with np.errstate(all="ignore"):
            a, b = (_floats(row[begin:end], kind.itemsize) for row in (last, before))
            step = (a - b) * a.dtype.type(momentum)
            out[begin:end] = _bytes(a + step, kind.itemsize)
    return out


def _floats(data: Row, size: int) -> NDArray[Any]:
    """View bytes as float32 or float64; two-byte floats as the upper half of a float32."""
    if size == 2:
        return np.asarray((data.view("<u2").astype("<u4") << 16).view("<f4"))
    return np.asarray(data.view(f"<f{size}"))


def _bytes(values: NDArray[Any], size: int) -> Row:
    if size == 2:
        return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
    return values.view(np.uint8)
