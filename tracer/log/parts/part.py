"""What a part of the log is: its tables, its columns of the meta row, encode, decode and end.

To add a part: a file here, its fixture in ``tests/data``, and one row in ``PARTS`` of ``table.py``
(in ``BATCH_PARTS`` or ``GROUP_PARTS`` if it belongs to a micro-batch or a parameter group).
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.codec.layout import Row
from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE, Readable, Source
from tracer.records import MicroBatch, ParameterGroup, Step

_LETTERS = {"<i8": "q", "<f8": "d", "<u4": "I"}


@dataclass(frozen=True)
class Entry:
    """One step and what it did to the buffers.

    Attributes:
        step: The step.
        before: The buffers before it, as a byte row.
        after: The buffers after it.
    """

    step: Step
    before: Row
    after: Row


class Part(ABC):
    """One part of a step.

    Attributes:
        tables: Its tables, by name.
        columns: Its columns of the meta row, ``<i8``.
        checksums: Its checksums in the meta row, and the table that an error names.
        fields: The fields of ``Step`` that ``decode`` returns, in this order.
    """

    tables: ClassVar[Mapping[str, Table]]
    columns: ClassVar[Sequence[str]] = ()
    checksums: ClassVar[Mapping[str, str]] = {}
    fields: ClassVar[Sequence[str]] = ()

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @abstractmethod
    def encode(self, sink: Sink, entry: Entry) -> Sequence[int]:
        """Append a step's rows; return its columns of the meta row."""

    @abstractmethod
    def decode(self, source: Source) -> Sequence[Any]:
        """Return what was encoded.

        Raises:
            LogError: It does not match its checksum.
        """

    @abstractmethod
    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return the length that each table has after the steps of some meta rows, from 0 on."""

    def restore(self, sink: Sink, meta: Any, step: Step) -> None:
        """Go on behind a step that is on file, the last one of each table.

        Args:
            sink: Where rows go.
            meta: Its meta row.
            step: The step.
        """
        _recall(sink, self.tables)

    def require(self, source: Source) -> None:
        """Raise LogError unless the part is whole, with what ``decode`` leaves for later."""
        self.decode(source)


class BatchPart(ABC):
    """One part of a micro-batch; the methods take all micro-batches of a step.

    Attributes:
        tables: Its tables, by name.
        columns: Its columns of a micro-batch's row: names and types.
        checksums: Its checksums in the meta row, and the table that an error names.
    """

    tables: ClassVar[Mapping[str, Table]]
    columns: ClassVar[Mapping[str, str]]
    checksums: ClassVar[Mapping[str, str]] = {}

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @abstractmethod
    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Append rows; return the columns of each micro-batch."""

    @abstractmethod
    def decode(self, source: Source, rows: NDArray[Any]) -> list[Any]:
        """Return this part of each micro-batch, given their rows."""

    @abstractmethod
    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return the length that each table has after some micro-batches, from the first on."""

    def restore(self, sink: Sink, micro: NDArray[Any]) -> None:
        """Go on behind the last row of each table.

        Args:
            sink: Where rows go.
            micro: The rows of the last step's micro-batches.
        """
        _recall(sink, self.tables)


class GroupPart(ABC):
    """One part of a parameter group; the methods take all groups of a step.

    Attributes:
        tables: Its tables, by name.
        columns: Its columns of the meta row, ``<i8``.
        checksums: Its checksums in the meta row, and the table that an error names.
    """

    tables: ClassVar[Mapping[str, Table]]
    columns: ClassVar[Sequence[str]] = ()
    checksums: ClassVar[Mapping[str, str]] = {}

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @abstractmethod
    def encode(self, sink: Sink, groups: Sequence[ParameterGroup]) -> Sequence[int]:
        """Append rows; return the columns of the meta row."""

    @abstractmethod
    def decode(self, source: Source, names: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Return fields of each ``ParameterGroup``, given the names of its parameters."""

    @abstractmethod
    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return the length that each table has after the steps of some meta rows, from 0 on."""


def _recall(sink: Sink, tables: Mapping[str, Table]) -> None:
    for name, table in tables.items():
        if table.on_change:
            sink.recall(name)


def last_end(starts: NDArray[Any], counts: NDArray[Any] | int = 1) -> int:
    """Return where the last of some rows ends; ``NONE`` is no row."""
    ends = np.where(starts == NONE, 0, starts + counts)
    return int(ends.max(initial=0))


def packer(dtype: np.dtype[Any]) -> struct.Struct:
    """Return what packs a row of a compound type, in a microsecond."""
    return struct.Struct("<" + "".join(_LETTERS[dtype[name].str] for name in dtype.names or ()))
