"""The recorded batch of a micro-batch: its bytes as words, which HDF5 shuffles and deflates."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Table
from tracer.log.parts.part import BatchPart, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE, Readable, Source
from tracer.records import MicroBatch

SNAP_BATCHES = "snap/batch"
WORD = np.dtype("<u4")
_CHUNK = 1 << 14


class RecordedBatches(BatchPart):
    """Bytes with a checksum of their own; ``decode`` returns what reads them.

    A step begins an HDF5 chunk: HDF5 writes a compressed one anew, and its old place is lost,
    whenever something is added to it.
    """

    tables: ClassVar = {SNAP_BATCHES: Table(WORD, chunk=_CHUNK, deflated=True)}
    columns: ClassVar = {"batch": "<i8", "batch_bytes": "<i8", "batch_crc": "<u4"}

    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Append the bytes, filled up to whole words, and behind them the rest of a chunk."""
        found: list[tuple[float, ...]] = [self._encoded(sink, batch) for batch in batches]
        gap = -sink.tables[SNAP_BATCHES] % _CHUNK
        sink.tables.extend(SNAP_BATCHES, bytes(gap * WORD.itemsize), gap)
        return found

    def _encoded(self, sink: Sink, batch: MicroBatch) -> tuple[int, int, int]:
        if batch.payload is None:
            return NONE, 0, 0
        data = batch.payload()
        words = _words(len(data))
        whole = data.ljust(words * WORD.itemsize, b"\0")
        return sink.tables.extend(SNAP_BATCHES, whole, words), len(data), zlib.crc32(data)

    def decode(self, source: Source, rows: NDArray[Any]) -> list[Callable[[], bytes] | None]:
        """Return what reads each batch, and raises LogError if it is damaged; None for none."""
        places, end = rows[list(self.columns)].tolist(), 0
        for start, size, _ in places:
            if start != NONE:
                if start < end or size < 0:  # what is named twice would be in memory twice
                    raise source.broken(SNAP_BATCHES)
                end = start + _words(size)
        return [None if place[0] == NONE else _reader(source, *place) for place in places]

    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return the number of words, with the rest of the last chunk."""
        words = last_end(micro["batch"], _words(micro["batch_bytes"]))
        return {SNAP_BATCHES: min(words + -words % _CHUNK, tables.length(SNAP_BATCHES))}


def _reader(source: Source, start: int, size: int, crc: int) -> Callable[[], bytes]:
    def read() -> bytes:
        words = source.tables.rows(SNAP_BATCHES, start, _words(size), source.where)
        data = words.tobytes()[:size]
        if zlib.crc32(data) != crc:
            raise source.broken(SNAP_BATCHES)
        return data

    return read


def _words(size: Any) -> Any:
    """Return how many words some bytes fill."""
    return -(-size // WORD.itemsize)
