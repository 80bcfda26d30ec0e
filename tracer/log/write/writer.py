"""LogWriter: appends steps to one HDF5 file; a step exists once its meta row is on file.

A step is appended together with the parameters that it led to, so that ``w_t`` and ``w_{t+1}``
of every readable step are readable. The file is written in SWMR mode: it can be read meanwhile.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tracer.codec.delta import Coder
from tracer.codec.layout import Row, read_layout, row_bytes
from tracer.log import metadata, schema
from tracer.log.parts import segments
from tracer.log.parts.full_states import FullStateWriter
from tracer.log.parts.part import Entry
from tracer.log.parts.seals import sealed
from tracer.log.parts.string_ids import STRING_ENDS
from tracer.log.write.abandoning import abandon, forget, keep_from_forks
from tracer.log.write.room import room
from tracer.log.write.step_rows import StepRows
from tracer.log.write.tables import Tables, sync
from tracer.records import Step


class LogWriter:
    """Writes one run log.

    Args:
        file: The open file, new (``schema.create``) or cut to whole steps.
        sync_every: Steps between forced writes to the disk itself; 0 is never.
        path: Its name, if it does not have it yet.

    Attributes:
        committed: How many steps are on file.
    """

    def __init__(self, file: h5py.File, *, sync_every: int = 0, path: Path | None = None) -> None:
        self._file = file
        self._weights = file[schema.WEIGHTS]
        layouts = (read_layout(file[k][:], file[rows].shape[1]) for k, rows in schema.LAYOUTS)
        found = metadata.read(file)
        facts = schema.facts_of(found, *layouts)
        self._width = row_bytes(facts.parameters) if int(found["snapshot_every"]) == 1 else 0
        self._coder = Coder(
            facts.parameters, found["encoding"], found["momentum"], found["keyframe_every"]
        )
        file.swmr_mode = True
        self._tables = Tables(file)
        self._rows = StepRows(self._tables, facts)
        self._states = FullStateWriter(self._tables)
        self._meta: list[float] = []  # the last step's row
        self._crc = 0  # of the last parameters
        self._steps = self._synced = self.committed = 0
        self._sync_every = sync_every
        self._descriptor = int(file.id.get_vfd_handle())
        self._path = path or Path(os.path.realpath(file.filename))
        self._stat = os.fstat(self._descriptor)
        keep_from_forks(self, self._descriptor)

    def __len__(self) -> int:
        return self._steps

    def begin(self, parameters: Row, threads: int) -> None:
        """Write ``w_0``; ``threads`` is how many torch trains with."""
        segments.encode(self._tables, 0, threads)
        self._crc = self._snapshot(0, parameters)
        self.commit()

    def restore(self, meta: NDArray[Any], step: Step, threads: int) -> None:
        """Go on behind the last step on file, given its meta row."""
        self._meta = list(meta.item())
        self._steps = self._synced = step.index + 1
        self._crc = int(meta["parameters_after_crc"])
        self._rows.restore(meta, step)
        self._states = FullStateWriter(self._tables, passing=True)
        if width := self._width:
            self._coder.restore(self._steps, lambda k: np.asarray(self._weights[k][:width]))
        segments.encode(self._tables, self._steps, threads)
        self.commit()

    def append(self, step: Step, parameters: Row, before: Row, after: Row) -> None:
        """Take step ``t`` with ``w_{t+1}``, ``β_t`` and ``β_{t+1}``; on file at ``commit``."""
        crc, self._crc = self._crc, self._snapshot(step.index + 1, parameters)
        self._meta = self._rows.append(Entry(step, before, after), (crc, self._crc))
        self._tables.extend(schema.META, schema.packed_meta(self._meta), 1)
        self._steps = step.index + 1
        if self._sync_every and self._steps - self._synced >= self._sync_every:
            self.commit()
            self.sync()

    def amend(self, parameters: Row, buffers: Row) -> None:
        """Replace the last row if parameters or buffers are no longer what it says."""
        crc = zlib.crc32(parameters.data)
        if crc == self._crc and (not self._steps or self._rows.buffers_are(buffers)):
            return
        self.commit()
        moved = crc != self._crc and self._width > 0
        row = self._coder.encode(self._steps, parameters)[None] if moved else None
        self._crc = crc
        if self._steps:
            if row is not None:  # behind the old one, which holds until the meta row is replaced
                self._tables.replace(schema.WEIGHTS, self._steps + 1, row)
            self._rows.amend(self._meta, buffers, crc)
            self._tables.commit()
            self.sync()
            meta = np.frombuffer(schema.packed_meta(self._meta), schema.META_DTYPE)
            self._tables.replace(schema.META, self._steps - 1, meta)
            self._tables.commit()
            self.sync()
        if row is not None:
            self._tables.replace(schema.WEIGHTS, self._steps, row)
        self.commit()
        self.sync()  # before the next row takes the spare's place

    def state(self, t: int, data: bytes, *, passing: bool) -> None:
        """Write a full state as it is before step ``t``.

        Args:
            t: The step.
            data: The state, encoded.
            passing: Whether the next state may take its place.
        """
        self.commit()
        if self._states.encode(t, data, passing=passing):
            self.commit()
            if self._states.trim():
                self.commit()
                self.sync()  # before its space is another's

    def is_short(self) -> bool:
        """Return whether what waits for ``commit`` is half of what the disk still takes."""
        return self._tables.waits > 0 and 2 * self._tables.waits >= room(self._descriptor)

    def commit(self) -> None:
        """Hand everything so far to the operating system.

        Raises:
            FileNotFoundError: The file was removed or replaced meanwhile.
        """
        if not os.path.samestat(self._stat, self._path.stat()):
            raise FileNotFoundError("it is not where it was; another file has its name")
        self._status(closed=False)
        self._tables.commit()
        self.committed = self._steps

    def sync(self) -> None:
        """Force everything committed to the disk itself, if ``sync_every`` asks for it."""
        if self._sync_every:
            sync(self._file)
            self._synced = self._steps

    def close(self) -> None:
        """Mark the log as closed and close the file."""
        self.commit()
        self._tables.cut(schema.WEIGHTS, self._steps + 1)  # the spare of a row that was replaced
        self._file.flush()
        self.sync()  # a closed log must have all its steps
        self._status(closed=True)
        self._file.flush()
        self.sync()
        self._file.close()
        forget(self)

    def abandon(self) -> None:
        """Close the file though it cannot be written any more."""
        forget(self)
        abandon(self._file)

    def _status(self, *, closed: bool) -> None:
        strings = self._tables[STRING_ENDS] > 0
        row = (self._steps, closed, strings, self._sync_every, self._crc, 0)
        table = sealed(np.array([row], schema.STATUS_DTYPE))
        self._tables.replace(schema.STATUS, 0, table)

    def _snapshot(self, t: int, parameters: Row) -> int:
        if self._width:
            self._tables.snapshot(t, self._coder.encode(t, parameters))
        return zlib.crc32(parameters.data)
