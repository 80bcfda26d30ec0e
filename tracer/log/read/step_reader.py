"""Steps out of a log's tables, each row checked against its checksum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tracer.codec.layout import Row
from tracer.log import schema
from tracer.log.parts.buffers import Buffers
from tracer.log.parts.facts import Facts
from tracer.log.parts.seals import is_sealed
from tracer.log.parts.source import Source
from tracer.log.parts.table import PARTS
from tracer.log.read.tables import LogTables
from tracer.records import MicroBatch, ParameterGroup, Step


class StepReader:
    """Reads the records of one log.

    Args:
        tables: Its tables.
        facts: What holds for every step.

    Raises:
        LogError: A table's rows are not as wide as the parameters or the metadata ask for.
    """

    def __init__(self, tables: LogTables, facts: Facts) -> None:
        self._tables, self._names = tables, facts.optimizers
        for name, table in schema.TABLES.items():
            width = 0 if table.width is None else table.width(facts)
            if width and width != tables.width(name):
                raise tables.damage(name, f"has {tables.width(name)} columns instead of {width}")
        self._buffers = Buffers(facts)
        self._parts = [self._buffers if kind is Buffers else kind(facts) for kind in PARTS]
        self._meta = tables.ahead(schema.META)

    def meta(self, t: int) -> Any:
        """Return the meta row of step ``t``."""
        row = self._meta.rows(t, 1, f"step {t}")
        if row[0]["step"] != t or not is_sealed(row):
            self._meta.forget()
            raise self._tables.broken(t, schema.META)
        return row[0]

    def step(self, t: int) -> Step:
        """Return step ``t``."""
        source = self._source(t)
        found: dict[str, Any] = {}
        for part in self._parts:
            if part.fields:
                found.update(zip(part.fields, part.decode(source), strict=True))
        meta = source.meta
        if self._names:
            found["micro_batches"] = self._with_optimizers(**found)
        return Step(
            index=t,
            epoch=None if meta["epoch"] < 0 else int(meta["epoch"]),
            gradient_norm=float(meta["gradient_norm"]),
            clip_factor=float(meta["clip_factor"]),
            **found,
        )

    def _with_optimizers(
        self, micro_batches: Iterable[MicroBatch], groups: Iterable[ParameterGroup], **_: Any
    ) -> tuple[MicroBatch, ...]:
        """Return micro-batches with the names of the optimizers that took their step."""
        names = tuple(self._names[k] for k in dict.fromkeys(group.optimizer for group in groups))
        return tuple(replace(micro, optimizers=names) for micro in micro_batches)

    def buffers(self, t: int, *, after: bool) -> Row:
        """Return the buffers before step ``t``, or after it, as a byte row."""
        return self._buffers.decode(self._source(t))[after]

    def require_whole(self, t: int) -> None:
        """Raise LogError unless every part of step ``t`` is there."""
        source = self._source(t)
        for part in self._parts:
            part.require(source)

    def ends(self, t: int) -> dict[str, int]:
        """Return the length that each table has before step ``t``."""
        meta = self._tables.rows(schema.META, 0, t, "the steps")
        ends: dict[str, int] = {}
        for part in self._parts:
            ends |= part.end(self._tables, meta)
        return ends

    def _source(self, t: int) -> Source:
        return Source(self._tables, t, self.meta(t))
