"""The buffers before and after a step: a byte row when they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.codec.layout import Row, row_bytes
from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import Entry, Part, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE, Readable, Source
from tracer.records import Step

SNAP_BUFFERS = "snap/buf"


class Buffers(Part):
    """The model's buffers; ``decode`` returns those before the step and those after it."""

    tables: ClassVar = {
        SNAP_BUFFERS: Table(np.dtype("u1"), lambda facts: row_bytes(facts.buffers), on_change=True),
    }
    columns = ("buffers", "buffers_after")
    checksums: ClassVar = {"buffers_crc": SNAP_BUFFERS}

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._before = b""  # the last step

    def encode(self, sink: Sink, entry: Entry) -> Sequence[int]:
        """Append the buffers before the step and after it, each if it differs from the last."""
        self._before = entry.before.tobytes()
        return (
            sink.changed(SNAP_BUFFERS, self._before, "buffers_crc"),
            sink.changed(SNAP_BUFFERS, entry.after.tobytes(), "buffers_crc"),
        )

    def amend(self, sink: Sink, after: Row) -> dict[str, int]:
        """Append other buffers after the last step; return what changes in its meta row."""
        sink.begin()
        sink.sum("buffers_crc", self._before)
        number = sink.changed(SNAP_BUFFERS, after.tobytes(), "buffers_crc")
        return {"buffers_after": number, "buffers_crc": sink.sums["buffers_crc"]}

    def are(self, sink: Sink, buffers: Row) -> bool:
        """Return whether these are the last buffers logged."""
        return buffers.tobytes() == sink.last(SNAP_BUFFERS)

    def decode(self, source: Source) -> Sequence[Row]:
        """Return the byte rows of the buffers before and after the step."""
        found = [source.row(SNAP_BUFFERS, source.meta[k], "buffers_crc") for k in self.columns]
        source.check(self.checksums)
        return found

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return the number of rows that some steps point at."""
        return {SNAP_BUFFERS: max(last_end(meta[name]) for name in self.columns)}

    def restore(self, sink: Sink, meta: Any, step: Step) -> None:
        """Take up the last row, and the one before the last step."""
        super().restore(sink, meta, step)
        if meta["buffers"] != NONE:
            self._before = sink.tables.rows(SNAP_BUFFERS, meta["buffers"], 1).tobytes()
