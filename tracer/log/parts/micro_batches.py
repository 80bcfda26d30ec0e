"""The micro-batches of a step: a row each.

What the log holds of one is in ``BATCH_PARTS``, in the order of the fields of ``MicroBatch``;
each part has its columns of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.batch_ids import IDS, BatchIds
from tracer.log.parts.coefficients import Coefficients
from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import Entry, Part, packer
from tracer.log.parts.random_states import RandomStates
from tracer.log.parts.ranks import Ranks
from tracer.log.parts.recorded_batches import RecordedBatches
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.records import MicroBatch, Seeds, Step

MICRO = "steps/micro"
BATCH_PARTS = (BatchIds, Coefficients, RandomStates, RecordedBatches, Ranks)
MICRO_DTYPE = np.dtype([column for kind in BATCH_PARTS for column in kind.columns.items()])
MICRO_STRUCT = packer(MICRO_DTYPE)


class MicroBatches(Part):
    """The micro-batches with all their parts."""

    tables: ClassVar = {
        MICRO: Table(MICRO_DTYPE),
        **{name: table for kind in BATCH_PARTS for name, table in kind.tables.items()},
    }
    columns = ("ids", "count", "micro", "micro_count")
    checksums: ClassVar = {
        "micro_crc": MICRO,
        **{field: name for kind in BATCH_PARTS for field, name in kind.checksums.items()},
    }
    fields = ("micro_batches",)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._parts = [kind(facts) for kind in BATCH_PARTS]

    def encode(self, sink: Sink, entry: Entry) -> Sequence[int]:
        """Append a row for each micro-batch, and its parts."""
        batches, ids = entry.step.micro_batches, sink.tables[IDS]
        columns = zip(*[part.encode(sink, batches) for part in self._parts], strict=True)
        rows = [MICRO_STRUCT.pack(*chain.from_iterable(values)) for values in columns]
        start = sink.add(MICRO, b"".join(rows), len(rows), "micro_crc")
        return ids, sink.tables[IDS] - ids, start, len(rows)

    def decode(self, source: Source) -> Sequence[tuple[MicroBatch, ...]]:
        """Return the micro-batches; a recorded batch is read when it is asked for."""
        meta = source.meta
        rows = source.ahead(MICRO, meta["micro"], meta["micro_count"], "micro_crc")
        source.check({"micro_crc": MICRO})
        values = [part.decode(source, rows) for part in self._parts]
        source.check(self.checksums)
        place, base = f"{source.tables.path}: {source.where}", self._facts.data_seed
        seeds = None if base is None else Seeds(base, max(0, int(meta["epoch"])))
        batches = zip(*values, strict=True)
        return [tuple([MicroBatch(*each, place=place, seeds=seeds) for each in batches])]

    def require(self, source: Source) -> None:
        """Read the recorded batches, too."""
        for batch in self.decode(source)[0]:
            if batch.payload is not None:
                batch.payload()

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return where the last step's rows end, and the parts of all micro-batches."""
        count = int(meta[-1]["micro"] + meta[-1]["micro_count"])
        micro = tables.rows(MICRO, 0, count, "the steps")
        ends = {MICRO: count}
        for part in self._parts:
            ends |= part.end(tables, micro)
        return ends

    def restore(self, sink: Sink, meta: Any, step: Step) -> None:
        """Go on behind the last row of each table."""
        rows = sink.tables.rows(MICRO, int(meta["micro"]), int(meta["micro_count"]))
        for part in self._parts:
            part.restore(sink, rows)
