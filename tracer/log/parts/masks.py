"""Which parameters had no gradient, and which did not require one: two masks in a row of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import Entry, Part, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source

MASKS = "steps/nograd"


class Masks(Part):
    """Two masks over the parameters; a row when they change."""

    tables: ClassVar = {
        MASKS: Table(np.dtype("u1"), lambda facts: 2 * len(facts.names), on_change=True),
    }
    columns = ("mask",)
    checksums: ClassVar = {"nograd_crc": MASKS}
    fields = ("without_gradient", "frozen")

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._chosen: tuple[frozenset[str], ...] = ()  # what the last row says
        self._row = b""

    def encode(self, sink: Sink, entry: Entry) -> Sequence[int]:
        """Append a row if it differs from the last one."""
        chosen = (entry.step.without_gradient, entry.step.frozen)
        if chosen != self._chosen:
            masks = np.zeros((2, len(self._facts.names)), np.uint8)
            for mask, names in zip(masks, chosen, strict=True):
                mask[[self._facts.numbers[name] for name in names]] = 1
            self._chosen, self._row = chosen, masks.tobytes()
        return (sink.changed(MASKS, self._row, "nograd_crc"),)

    def decode(self, source: Source) -> Sequence[Any]:
        """Return the names without gradient, and those that did not require one."""
        row = source.row(MASKS, source.meta["mask"], "nograd_crc")
        source.check(self.checksums)
        return [
            frozenset(name for name, on in zip(self._facts.names, mask, strict=True) if on)
            for mask in row.reshape(2, -1)
        ]

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return the number of rows that some steps point at."""
        return {MASKS: last_end(meta["mask"])}
