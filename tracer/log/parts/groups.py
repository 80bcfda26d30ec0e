"""The parameter groups: which parameters each has, a table for each time that they change.

Whatever else the log holds of a group is in ``GROUP_PARTS``.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.gradient_norms import GradientNorms
from tracer.log.parts.hyperparameters import HYPER, Hyperparameters
from tracer.log.parts.part import Entry, Part
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.records import ParameterGroup, Step

GROUPS = "groups"
GROUP_DTYPE = np.dtype([("group", "<i8"), ("parameter", "<i8")])
GROUP_PARTS = (Hyperparameters, GradientNorms)


class Groups(Part):
    """The parameter groups with all their parts."""

    tables: ClassVar = {
        **{name: table for kind in GROUP_PARTS for name, table in kind.tables.items()},
        GROUPS: Table(GROUP_DTYPE),
    }
    columns = (*(name for kind in GROUP_PARTS for name in kind.columns), "members", "member_count")
    checksums: ClassVar = {
        **{field: name for kind in GROUP_PARTS for field, name in kind.checksums.items()},
        "groups_crc": GROUPS,
    }
    fields = ("groups",)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._parts = [kind(facts) for kind in GROUP_PARTS]
        self._written: tuple[tuple[str, ...], ...] = ()
        self._rows, self._place = b"", (0, 0)  # of what was written: bytes, start and count
        self._read: tuple[list[int], list[list[str]]] = [], []  # whence, what

    def encode(self, sink: Sink, entry: Entry) -> Sequence[int]:
        """Append the members if they changed, and the other parts."""
        groups = entry.step.groups
        names = tuple([group.names for group in groups])
        if names != self._written:
            self._written, self._rows = names, self._encoded(names)
            count = len(self._rows) // GROUP_DTYPE.itemsize
            self._place = sink.tables.extend(GROUPS, self._rows, count), count
        sink.sum("groups_crc", self._rows)
        columns = [number for part in self._parts for number in part.encode(sink, groups)]
        return *columns, *self._place

    def _encoded(self, groups: Sequence[Sequence[str]]) -> bytes:
        numbers = self._facts.numbers
        rows = [(g, numbers[name]) for g, names in enumerate(groups) for name in names]
        return np.array(rows, GROUP_DTYPE).tobytes()

    def decode(self, source: Source) -> Sequence[tuple[ParameterGroup, ...]]:
        """Return the groups."""
        names = self._names(source)
        values = [part.decode(source, names) for part in self._parts]
        for part in self._parts:
            source.check(part.checksums)
        return [
            tuple(
                ParameterGroup(tuple(members), **ChainMap(*each))
                for members, *each in zip(names, *values, strict=True)
            )
        ]

    def _names(self, source: Source) -> list[list[str]]:
        """Return the names of each group's parameters; those of the last call where they lie."""
        meta, known = source.meta, self._facts.names
        origin = [int(meta[k]) for k in ("groups", "members", "member_count", "groups_crc")]
        if origin == self._read[0]:
            return self._read[1]
        # a list of so many groups is made once the file is seen to hold that many
        source.tables.rows(HYPER, meta["hyper"], meta["groups"], source.where)
        rows = source.rows(GROUPS, meta["members"], meta["member_count"], "groups_crc")
        source.check({"groups_crc": GROUPS})
        names: list[list[str]] = [[] for _ in range(origin[0])]
        for g, parameter in rows.tolist():
            if not (0 <= g < len(names) and 0 <= parameter < len(known)):
                raise source.broken(GROUPS)
            names[g].append(known[parameter])
        self._read = origin, names
        return names

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return where the last step's rows end."""
        ends = {GROUPS: int(meta[-1]["members"] + meta[-1]["member_count"])}
        for part in self._parts:
            ends |= part.end(tables, meta)
        return ends

    def restore(self, sink: Sink, meta: Any, step: Step) -> None:
        """Take up the members of the last step."""
        self._written = tuple(group.names for group in step.groups)
        self._rows = self._encoded(self._written)
        self._place = int(meta["members"]), int(meta["member_count"])
