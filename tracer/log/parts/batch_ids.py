"""The example IDs of a micro-batch: integers as they are, strings by their numbers."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import BatchPart, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.log.parts.string_ids import StringIds
from tracer.records import ID, MicroBatch

IDS = "steps/ids"


class BatchIds(BatchPart):
    """One entry an ID. The checksum covers entries, then the strings' lengths, then the strings."""

    tables: ClassVar = {IDS: Table(np.dtype("<i8"), chunk=1024), **StringIds.tables}
    columns: ClassVar = {"ids": "<i8", "count": "<i8"}
    checksums: ClassVar = {"ids_crc": IDS}

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._strings = StringIds()

    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Append the IDs; return where they begin, and how many they are."""
        return [(self._encoded(sink, batch.ids), len(batch.ids)) for batch in batches]

    def _encoded(self, sink: Sink, ids: Sequence[ID]) -> int:
        if isinstance(ids[0], int):
            integers = array("q", cast("Sequence[int]", ids))
            return sink.add(IDS, integers.tobytes(), len(ids), "ids_crc")
        texts = [str(identity) for identity in ids]
        numbers = array("q", [self._strings.encode(sink, text) for text in texts])
        start = sink.add(IDS, numbers.tobytes(), len(ids), "ids_crc")
        sink.sum("ids_crc", _joined([text.encode() for text in texts]))
        return start

    def decode(self, source: Source, rows: NDArray[Any]) -> list[tuple[ID, ...]]:
        """Return the IDs of each micro-batch.

        Raises:
            LogError: A row points at other IDs than the step's, or an ID has no string.
        """
        begin = int(source.meta["ids"])
        whole = source.tables.rows(IDS, begin, source.meta["count"], source.where)
        found, end = [], 0
        for start, count in zip(rows["ids"].tolist(), rows["count"].tolist(), strict=True):
            # one behind the other: what is named twice would be in memory twice
            if start != begin + end or not 0 <= count <= len(whole) - end:
                raise source.broken(IDS)
            numbers, end = whole[end : end + count], end + count
            source.sum("ids_crc", numbers.tobytes())
            found.append(self._decoded(source, numbers.tolist()))
        return found

    def _decoded(self, source: Source, numbers: list[int]) -> tuple[ID, ...]:
        if not source.tables.strings:
            return tuple(numbers)
        known = self._strings.decode(source.tables, max(numbers, default=-1) + 1)
        if any(not 0 <= k < len(known) for k in numbers):
            raise source.broken(IDS)
        texts = [known[k] for k in numbers]
        source.sum("ids_crc", _joined(texts))
        return tuple([text.decode(errors="replace") for text in texts])

    def checksum(self, tables: Readable, numbers: list[int], before: int) -> int:
        """Return the checksum of a micro-batch's string IDs and of what comes before them.

        Raises:
            LogError: An ID has no string.
        """
        known = self._strings.decode(tables, max(numbers, default=-1) + 1)
        if any(not 0 <= k < len(known) for k in numbers):
            raise tables.damage(IDS, "has numbers of strings that are not there")
        entries = zlib.crc32(array("q", numbers).tobytes(), before)
        return zlib.crc32(_joined([known[k] for k in numbers]), entries)

    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return the number of entries, and the strings that they use."""
        count = last_end(micro["ids"], micro["count"])
        largest = tables.rows(IDS, 0, count, "the steps").max(initial=-1)
        return {IDS: count, **self._strings.end(tables, int(largest) + 1)}

    def restore(self, sink: Sink, micro: NDArray[Any]) -> None:
        """Take up the strings on file."""
        self._strings.restore(sink)


def _joined(texts: Sequence[bytes]) -> bytes:
    """Return texts with their lengths before them: where each ends counts as much as its bytes."""
    return array("q", map(len, texts)).tobytes() + b"".join(texts)
