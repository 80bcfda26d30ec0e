"""The same run in another log: every record as it is, parameters of other steps.

A record does not depend on which parameters are on file, so tables are copied, checksums and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
from torch import Tensor

from tracer.codec.layout import pack
from tracer.codec.nested import encode
from tracer.hdf5.opening import open_hdf5
from tracer.log import metadata, schema
from tracer.log.parts.full_states import SNAP_STATE, STATES, FullStateWriter
from tracer.log.read.run_log import RunLog
from tracer.log.write.abandoning import abandon
from tracer.log.write.creation import LEAST
from tracer.log.write.tables import Tables, sync

_ANEW = (schema.WEIGHTS, STATES, SNAP_STATE)


class Point(NamedTuple):
    """What a log has before one step.

    Attributes:
        t: The step; ``T`` is after the last one.
        parameters: ``w_t``.
        state: The full state, encoded or to be encoded; None where the log has none.
    """

    t: int
    parameters: Mapping[str, Tensor]
    state: bytes | Mapping[str, Any] | None


def convert_log(log: RunLog, target: Path, every: int, points: Iterable[Point]) -> None:
    """Write a closed log of the same run.

    Args:
        log: The run.
        target: A new file, complete when this returns.
        every: Steps between snapshots; 1 has the parameters of every step, 0 those of epochs.
        points: From 0 to ``T``, in order.

    Raises:
        OSError: There is no room for it.
    """
    file = _new(target)
    try:
        with open_hdf5(log.path, "r") as source:
            _copy(source, file, log, every)
        _write(file, log, every, points)
        sync(file)
        file.flush()
    except BaseException as error:
        abandon(file)  # on a full disk HDF5 could not close it
        if isinstance(error, RuntimeError) and "errno =" in str(error):  # by HDF5
            raise OSError(str(error)) from error
        raise
    file.close()


def _copy(source: h5py.File, file: h5py.File, log: RunLog, every: int) -> None:
    """Copy every record; make the other tables, empty."""
    for name in (*schema.TABLES, schema.STATUS, schema.PARAMETERS, schema.BUFFERS):
        if name in _ANEW:
            schema.create_table(file, name, log.facts, {})
        elif name in source:
            source.copy(source[name], file, name)
    values = {k: v for k, v in metadata.read(source).items() if k != metadata.CHECKSUM}
    metadata.write(file, {**values, "snapshot_every": every, "encoding": "none"})


def _write(file: h5py.File, log: RunLog, every: int, points: Iterable[Point]) -> None:
    """Write parameters and full states."""
    tables = Tables(file)
    states = FullStateWriter(tables)
    for point in points:
        row = pack(point.parameters)
        if every == 1 and len(row):
            tables.snapshot(point.t, row)
            tables.commit()
        if point.state is not None:
            raw = point.state
            data = raw if isinstance(raw, bytes) else encode(raw, "the state")
            states.encode(point.t, data, passing=False)
    tables.commit()


def _new(target: Path) -> h5py.File:
    with target.open("xb") as room:
        room.write(bytes(LEAST))  # where this fails, HDF5 would crash
    return open_hdf5(target, "w", fs_strategy="page", fs_page_size=4096, **schema.WRITING)
