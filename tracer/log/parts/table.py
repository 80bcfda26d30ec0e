"""Every part of the log, one a row; the schema, writer, reader and resumption follow from it."""

from __future__ import annotations

from tracer.log.parts import full_states, segments
from tracer.log.parts.buffers import Buffers
from tracer.log.parts.groups import Groups
from tracer.log.parts.masks import Masks
from tracer.log.parts.micro_batches import MicroBatches
from tracer.log.parts.part import Part

# of each step, in the order of their columns and of their checksums in the meta row
PARTS: tuple[type[Part], ...] = (MicroBatches, Groups, Masks, Buffers)

TABLES = {
    **{name: table for part in PARTS for name, table in part.tables.items()},
    **full_states.TABLES,
    **segments.TABLES,
}
COLUMNS = [name for part in PARTS for name in part.columns]
# checksum in a meta row -> the table that an error names
CHECKSUMS = {field: name for part in PARTS for field, name in part.checksums.items()}
