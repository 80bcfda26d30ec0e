"""The same run in another log: every record as it is, parameters of other steps.

A record does not depend on which parameters are on file, so tables are copied, checksums and all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
from torch import Tensor

from tracer.codec.delta import Coder
from tracer.codec.layout import pack
from tracer.codec.nested import encode
from tracer.log import metadata, schema
from tracer.log.parts.full_states import SNAP_STATE, STATES, FullStateWriter
from tracer.log.read.run_log import RunLog
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
    """
    with h5py.File(log.path, "r") as source, _new(target) as file:
        facts = log.facts
        for name in (*schema.TABLES, schema.STATUS, schema.PARAMETERS, schema.BUFFERS):
            if name not in source:
                continue
            if name not in _ANEW:
                source.copy(source[name], file, name)
            else:
                schema.create_table(file, name, facts, {})
        values = {k: v for k, v in metadata.read(source).items() if k != metadata.CHECKSUM}
        metadata.write(file, {**values, "snapshot_every": every, "encoding": "none"})
        coder = Coder(facts.parameters, "none", 0.0, int(values["keyframe_every"]))
        tables = Tables(file)
        states = FullStateWriter(tables)
        for point in points:
            row = pack(point.parameters)
            if every == 1 and len(row):
                tables.snapshot(point.t, coder.encode(point.t, row))
                tables.commit()
            if point.state is not None:
                raw = point.state
                data = raw if isinstance(raw, bytes) else encode(raw, "the state")
                states.encode(point.t, data, passing=False)
        tables.commit()
        sync(file)


def _new(target: Path) -> h5py.File:
    target.touch(exist_ok=False)
    return h5py.File(os.fspath(target), "w", libver="latest", fs_strategy="page", fs_page_size=4096)
