"""Going on with a run: back to its last full state, and the log cut back to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch

from tracer.errors import LogError, LogWarning, TracingError
from tracer.hdf5.opening import open_hdf5
from tracer.log import schema
from tracer.log.parts.seals import sealed
from tracer.log.read.run_log import RunLog
from tracer.log.write.abandoning import abandon
from tracer.log.write.tables import sync
from tracer.log.write.writer import LogWriter


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


def last_state(
    path: Path, expected: Mapping[str, Any], at: int | None = None, *, ranks: int = 1
) -> Resumption | None:
    """Find the last full state of a log, None if it holds no step.

    The caller holds the lock and has repaired the log.

    Args:
        path: The log.
        expected: Metadata that the log must share with the run that goes on.
        at: The step of the state that is asked for; None is the last one.
        ranks: How many processes go on with the run.

    Raises:
        TracingError: The log is of another run, or holds no whole state.
    """
    with RunLog(path) as log:
        _require_ranks(log, ranks)
        for name, value in expected.items():
            found = log.metadata.get(name)
            if ("" if found is None else found) != value:
                raise TracingError(
                    f"cannot resume {path}: its {name} is {found!r}, now it is {value!r}; resume "
                    "with what the run was started with."
                )
        states = sorted(set(log.states()))
        if at is not None:
            return _state_at(log, at, states)
        since = len(log) - int(log.metadata.get("sync_every", 0))
        last = None
        for t in (t for t in states if t >= since):
            if (state := _whole_state(log, t)) is None:
                break  # torn by a power cut: those behind it are not kept either
            last = Resumption(t, len(log) - t, state)
        for t in (t for t in reversed(states) if t < since and last is None):
            if (state := _whole_state(log, t)) is not None:
                last = Resumption(t, len(log) - t, state)
        if last is not None:
            return last
        if len(log) == 0:  # ended before it began
            return None
        raise TracingError(
            f"cannot resume {path}: it holds no whole state; pass overwrite=True to begin anew."
        )


def _require_ranks(log: RunLog, ranks: int) -> None:
    before = int(log.metadata["ranks"])
    if before != ranks:
        raise TracingError(
            f"cannot resume {log.path}: its run had {before} ranks and now has {ranks}, which have "
            "other batches, coefficients and random numbers, so that it would not be the same "
            f"run.\n1. Resume with {before} ranks.\n"
            "2. Begin a new log: another path, or overwrite=True."
        )


def _state_at(log: RunLog, at: int, states: list[int]) -> Resumption:
    """Return the full state that is asked for."""
    state = _whole_state(log, at) if at in states else None
    if state is None:
        raise TracingError(
            f"cannot resume {log.path} at step {at}: it has no whole state there; it has those "
            f"before the steps {', '.join(map(str, states)) or 'none'}.\n"
            "1. Resume where it has one: resume=True is the last.\n"
            "2. Begin anew: overwrite=True."
        )
    return Resumption(at, len(log) - at, state)


def _whole_state(log: RunLog, t: int) -> dict[str, Any] | None:
    """Return a full state; None if it does not match its checksum or no run goes on from it."""
    try:
        found = log.state(t)
    except LogError:
        return None
    return None if found["random"] is None else found  # a conversion does not know the generators


def whole_steps(path: Path) -> int:
    """Return how many steps a log holds; none if there is no log."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogWarning)
            with RunLog(path) as log:
                return len(log)
    except LogError:
        return 0


def unwritable(path: Path, error: OSError) -> TracingError:
    """Return the error for a log that cannot be written; the caller holds no lock any more."""
    return TracingError(
        f"cannot resume {path}: it holds {whole_steps(path)} whole steps but cannot be written "
        f"({error}); nothing was changed. Make the file and its folder writable, or copy it to a "
        "place that is and resume the copy."
    )


def reopen(path: Path, step: int, sync_every: int) -> LogWriter:
    """Open a log for writing, cut back to the state before ``step``.

    Raises:
        TracingError: A reader has the file open.
        OSError, RuntimeError: It cannot be written; the steps before ``step`` are readable.
    """
    with RunLog(path) as log:
        rows = step + 1 if log.is_dense else 0
        lengths = {schema.META: step, schema.WEIGHTS: rows, **log.ends(step)}
        last = log.step(step - 1)
        meta = log.tables.rows(schema.META, step - 1, 1, f"step {step - 1}")
        crc = int(meta[0]["parameters_after_crc"])
        replaced = step == len(log) and log.snapshots.is_replaced(step, crc)
    try:
        file = open_hdf5(path, "r+", **schema.WRITING)
    except OSError as error:
        if not isinstance(error, BlockingIOError) and "already open" not in str(error):
            raise
        raise TracingError(
            f"cannot resume {path}: a reader has it open ({error}); close it and resume again."
        ) from error
    try:
        if sync_every:
            sync(file)  # that it is open, before anything else is changed
        _cut(file, lengths, step if replaced else None)
        _set_status(file, sync_every=sync_every)
        if sync_every:
            sync(file)  # what is cut off, before its space is another's
        writer = LogWriter(file, sync_every=sync_every)
        writer.restore(meta[0], last, torch.get_num_threads())
    except BaseException:
        abandon(file)
        raise
    return writer


def _cut(file: h5py.File, lengths: Mapping[str, int], replaced: int | None) -> None:
    """Cut tables off so that a kill, at any moment, leaves the steps that stay readable.

    Args:
        file: The log.
        lengths: What is left of each table.
        replaced: A row of parameters that is to be taken from its spare, the row behind.
    """
    _set_status(file, closed=0)  # a closed log must have all its steps
    meta, end = file[schema.META], lengths[schema.META]
    # HDF5 fills what is cut off a chunk with zeros at once and drops whole ones later: from the
    # end, chunk by chunk, so that no step behind a gap is taken for the last one
    for length in (
        *range((len(meta) - 1) // meta.chunks[0] * meta.chunks[0], end, -meta.chunks[0]),
        end,
    ):
        meta.resize(length, axis=0)
        file.flush()
    if replaced is not None:
        file[schema.WEIGHTS][replaced] = file[schema.WEIGHTS][replaced + 1]
        file.flush()
    for name, length in lengths.items():
        file[name].resize(length, axis=0)
    file.flush()


def _set_status(file: h5py.File, **values: int) -> None:
    row = file[schema.STATUS][:]
    for name, value in values.items():
        row[name] = value
    file[schema.STATUS][:] = sealed(row)
    file.flush()
