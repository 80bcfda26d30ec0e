"""Going on with a run: back to its last full state, and the log cut back to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from tracer import schema, superblock
from tracer.errors import LogError, TracingError
from tracer.reader import RunLog
from tracer.writer import LogWriter


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on.

    Attributes:
        step: Number of the next step.
        dropped: Whole steps behind the state, which are taken again.
        state: The full state before it.
    """

    step: int
    dropped: int
    state: dict[str, Any]


def last_state(path: Path, expected: Mapping[str, Any]) -> Resumption | None:
    """Find the last full state of a log, None if it holds no step; the caller holds the lock.

    Args:
        path: The log.
        expected: Metadata that the log must share with the run that goes on.

    Raises:
        TracingError: The log is of another run, or holds no whole state.
    """
    superblock.repair(path)
    with RunLog(path) as log:
        for name, value in expected.items():
            found = log.metadata.get(name)
            if (found or "") != value:
                raise TracingError(
                    f"cannot resume {path}: its {name} is {found!r}, now it is {value!r}; resume "
                    "with what the run was started with."
                )
        for t in sorted(set(log.states()), reverse=True):
            try:
                return Resumption(t, len(log) - t, log.state(t))
            except LogError:
                continue  # torn: the one before it holds
        if len(log) == 0:  # ended before it began
            return None
        raise TracingError(
            f"cannot resume {path}: it holds no whole state; pass overwrite=True to begin anew."
        )


def reopen(path: Path, step: int, *, state_every: int, sync_every: int) -> LogWriter:
    """Open a log for writing, cut back to the state before ``step``.

    Raises:
        TracingError: A reader has the file open.
    """
    with RunLog(path) as log:
        lengths = _lengths(log, step)
        names = list(log.parameter_layout)
        groups = [group.names for group in log.step(step - 1).groups]
        strings = log.string_ids()[: lengths[schema.STRING_ENDS]]
        hyperparameters = str(log.metadata["hyperparameters"]).split("\n")
    try:
        file = h5py.File(path, "r+", libver="latest", **schema.UNCACHED)
    except OSError as error:
        raise TracingError(
            f"cannot resume {path}: a reader has it open ({error}); close it and resume again."
        ) from error
    meta = file[schema.META][step - 1 : step]
    state = file[schema.STATES][lengths[schema.STATES] - 1]
    writer = LogWriter(file, names, hyperparameters, sync_every=sync_every, lengths=lengths)
    writer.restore(meta, groups, strings, torch.get_num_threads())
    if step % state_every:
        writer.let_last_state_pass(int(state["offset"]))
    return writer


def _lengths(log: RunLog, step: int) -> dict[str, int]:
    """Return the length that each table has before ``step``."""
    tables = log.tables
    meta = tables.rows(schema.META, 0, step, "the steps")
    last = meta[-1]
    micro = tables.rows(schema.MICRO, 0, int(last["micro"] + last["micro_count"]), "the steps")
    states = tables.rows(schema.STATES, 0, tables.length(schema.STATES), "the states")
    kept = int((states["step"] <= step).sum())
    words = -(-micro["batch_bytes"] // schema.WORD.itemsize)
    ids = tables.rows(schema.IDS, 0, int(last["ids"] + last["count"]), "the steps")
    strings = int(ids.max(initial=-1)) + 1 if log.metadata["id_type"] == "str" else 0
    ends = tables.rows(schema.STRING_ENDS, 0, strings, "the string IDs")
    return {
        schema.META: step,
        **({schema.NORMS: step} if tables.has(schema.NORMS) else {}),
        schema.WEIGHTS: step + 1,
        schema.IDS: len(ids),
        schema.MICRO: len(micro),
        schema.HYPER: int(last["hyper"] + last["groups"]),
        schema.GROUPS: int(last["members"] + last["member_count"]),
        schema.MASKS: _end(meta["mask"]),
        schema.SNAP_BUFFERS: max(_end(meta["buffers"]), _end(meta["buffers_after"])),
        schema.SNAP_RANDOM: _end(micro["rng"]),
        schema.COEFFICIENTS: _end(micro["coef"], micro["count"]),
        schema.SNAP_BATCHES: _end(micro["batch"], words),
        schema.STRING_ENDS: strings,
        schema.STRINGS: int(ends[-1]) if strings else 0,
        schema.STATES: kept,
        schema.SNAP_STATE: int(states[kept - 1]["offset"] + states[kept - 1]["bytes"]),
    }


def _end(starts: NDArray[Any], counts: NDArray[Any] | int = 1) -> int:
    """Return where the last of some rows ends; ``NONE`` is no row."""
    ends = np.where(starts == schema.NONE, 0, starts + counts)
    return int(ends.max(initial=0))
