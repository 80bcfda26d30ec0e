"""Turns a step's record into rows of the log's tables, and their checksums into its meta row."""

from __future__ import annotations

from typing import Any

from tracer.codec.layout import Row
from tracer.log import schema
from tracer.log.parts.buffers import Buffers
from tracer.log.parts.facts import Facts
from tracer.log.parts.part import Entry
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE
from tracer.log.parts.table import CHECKSUMS, PARTS
from tracer.log.write.tables import Tables
from tracer.records import Step

_NAMES = list(schema.META_DTYPE.names or ())


class StepRows:
    """Appends the small rows of each step.

    Args:
        tables: Where they go.
        facts: What holds for every step.
    """

    def __init__(self, tables: Tables, facts: Facts) -> None:
        self._sink = Sink(tables)
        self._buffers = Buffers(facts)
        self._parts = [self._buffers if kind is Buffers else kind(facts) for kind in PARTS]

    def restore(self, meta: Any, step: Step) -> None:
        """Go on behind a step that is on file, given its meta row."""
        for part in self._parts:
            part.restore(self._sink, meta, step)

    def append(self, entry: Entry, checksums: tuple[int, int]) -> list[float]:
        """Append a step's rows.

        Args:
            entry: The step, and the buffers before and after it.
            checksums: Of the parameters before and after it.

        Returns:
            Its meta row.
        """
        step, sink = entry.step, self._sink
        sink.begin()
        columns = [number for part in self._parts for number in part.encode(sink, entry)]
        return [
            step.index,
            NONE if step.epoch is None else step.epoch,
            *columns,
            step.gradient_norm,
            step.clip_factor,
            *checksums,
            *[sink.sums.get(name, 0) for name in CHECKSUMS],
            0,
        ]

    def buffers_are(self, buffers: Row) -> bool:
        """Return whether these are the last buffers logged."""
        return self._buffers.are(self._sink, buffers)

    def amend(self, meta: list[float], after: Row, parameters_after_crc: int) -> None:
        """Change what the last step's meta row says of what came after it."""
        changed = self._buffers.amend(self._sink, after)
        for name, value in {**changed, "parameters_after_crc": parameters_after_crc}.items():
            meta[_NAMES.index(name)] = value
