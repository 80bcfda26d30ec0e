"""The rank of a distributed run that a micro-batch is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from tracer.log.parts.part import BatchPart
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.records import MicroBatch


class Ranks(BatchPart):
    """One number; 0 of every micro-batch where one process trains."""

    tables: ClassVar = {}
    columns: ClassVar = {"rank": "<i8"}

    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Return the ranks."""
        return [(batch.rank,) for batch in batches]

    def decode(self, source: Source, rows: NDArray[Any]) -> list[int]:
        """Return the ranks."""
        found: list[int] = rows["rank"].tolist()
        return found

    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return nothing: there is no table."""
        return {}
