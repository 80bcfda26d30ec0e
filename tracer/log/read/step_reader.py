"""Steps out of a log's tables, each row checked against its checksum."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.codec.layout import Row
from tracer.errors import LogError
from tracer.log import schema
from tracer.log.read.ahead import Ahead
from tracer.log.read.string_ids import StringIds
from tracer.log.read.tables import LogTables
from tracer.records import GRADIENT_NORM, ID, MicroBatch, ParameterGroup, RandomState, Step

_CPU_STATE, _CUDA_STATE = len(torch.get_rng_state()), 16


class StepReader:
    """Reads the records of one log.

    Args:
        path: The log, for messages.
        tables: Its tables.
        names: Names of the parameters, in order.
        attributes: The run's metadata.

    Attributes:
        strings: The string IDs.
    """

    def __init__(
        self, path: Path, tables: LogTables, names: Sequence[str], attributes: Mapping[str, Any]
    ) -> None:
        self._path, self._tables, self._names = path, tables, list(names)
        self._numbers = {name: k for k, name in enumerate(names)}
        self._hyperparameters = str(attributes["hyperparameters"]).split("\n")
        columns = tables.width(schema.HYPER)
        if len(self._hyperparameters) != columns or tables.width(schema.MASKS) < 2 * len(names):
            raise tables.damage(schema.HYPER, "does not have the columns that the metadata name")
        self._norms = Ahead(tables, schema.NORMS) if tables.has(schema.NORMS) else None
        if self._norms and tables.width(schema.NORMS) < len(names):
            raise tables.damage(schema.NORMS, "does not have a column for each parameter")
        self._devices = [int(k) for k in str(attributes["cuda_devices"]).split()]
        self.strings = StringIds(tables)
        self._has_strings = False
        self._meta, self._micro = Ahead(tables, schema.META), Ahead(tables, schema.MICRO)
        self._grouped: tuple[list[int], list[list[str]]] = [], []  # whence, what

    def status(self) -> Any:
        """Return the status row."""
        for _ in range(100):  # a live writer may be at it
            row = self._tables.rows(schema.STATUS, 0, 1, "the status")
            if schema.is_sealed(row):
                self._has_strings = bool(row[0]["strings"])
                return row[0]
        raise self._tables.damage(schema.STATUS, "does not match its checksum")

    def meta(self, t: int) -> Any:
        """Return the meta row of step ``t``."""
        row = self._meta.rows(t, 1, f"step {t}")
        if row[0]["step"] != t or not schema.is_sealed(row, "record_crc"):
            self._meta.forget()
            raise self._broken(t, schema.META)
        return row[0]

    def step(self, t: int) -> Step:
        """Return step ``t``."""
        meta = self.meta(t)
        hyper = self._tables.rows(schema.HYPER, meta["hyper"], meta["groups"], f"step {t}")
        norms = self._gradient_norms(t, meta, hyper)
        self._check(t, meta, "hyper_crc", hyper, norms)
        mask = self._row(t, schema.MASKS, meta["mask"])
        self._check(t, meta, "nograd_crc", mask)
        off, frozen = (
            frozenset(name for name, on in zip(self._names, half, strict=True) if on)
            for half in mask.reshape(2, -1)
        )
        members = self._members(t, meta, len(hyper))
        return Step(
            index=t,
            epoch=None if meta["epoch"] < 0 else int(meta["epoch"]),
            micro_batches=self._micro_batches(t, meta),
            groups=tuple(self._group(members[g], row, norms) for g, row in enumerate(hyper)),
            gradient_norm=float(meta["gradient_norm"]),
            clip_factor=float(meta["clip_factor"]),
            without_gradient=off,
            frozen=frozen,
        )

    def require_whole(self, t: int) -> None:
        """Raise LogError unless step ``t`` is there with its buffers and recorded batches."""
        self.buffers(t, after=True)
        for batch in self.step(t).micro_batches:
            if batch.payload is not None:
                batch.payload()

    def _group(self, names: list[str], row: NDArray[Any], norms: NDArray[Any]) -> ParameterGroup:
        numbers = dict(zip(self._hyperparameters, map(float, row), strict=True))
        whole = numbers.pop(GRADIENT_NORM, math.nan)
        each = (float(norms[self._numbers[name]]) for name in names if len(norms))
        return ParameterGroup(tuple(names), numbers, whole, tuple(each))

    def _gradient_norms(self, t: int, meta: Any, hyper: NDArray[Any]) -> NDArray[Any]:
        """Return the norm of each parameter's gradient; of no parameter in early logs."""
        if self._norms is None:
            return np.zeros(0)
        known = int(meta["hyper_crc"]), zlib.crc32(hyper.tobytes())
        return self._norms.checked(t, 1, f"step {t}", *known).flatten()

    def buffers(self, t: int, *, after: bool) -> Row:
        """Return the buffers before step ``t``, or after it, as a byte row."""
        meta = self.meta(t)
        before = self._row(t, schema.SNAP_BUFFERS, meta["buffers"])
        later = self._row(t, schema.SNAP_BUFFERS, meta["buffers_after"])
        self._check(t, meta, "buffers_crc", before, later)
        return later if after else before

    def segments(self) -> list[tuple[int, str]]:
        """Return the first step and the time of each segment."""
        count = self._tables.length(schema.SEGMENTS)
        rows = self._tables.rows(schema.SEGMENTS, 0, count, "the list of segments")
        if not all(schema.is_sealed(rows[k : k + 1]) for k in range(count)):
            raise self._tables.damage(schema.SEGMENTS, "does not match its checksum")
        return [(int(row["step"]), row["began"].decode(errors="replace")) for row in rows]

    def _broken(self, t: int, name: str) -> LogError:
        return LogError(
            f"{self._path}: the record of step {t} ({name}) does not match its checksum; the file "
            "is damaged, restore it from a copy."
        )

    def _check(self, t: int, meta: Any, field: str, *parts: NDArray[Any] | bytes) -> None:
        crc = 0
        for part in parts:
            crc = zlib.crc32(part if isinstance(part, bytes) else part.tobytes(), crc)
        if crc != meta[field]:
            raise self._broken(t, schema.CHECKSUMS[field])

    def _row(self, t: int, name: str, number: int) -> Row:
        if number == schema.NONE:
            return np.zeros(0, np.uint8)
        return np.asarray(self._tables.rows(name, number, 1, f"step {t}")[0])

    def _members(self, t: int, meta: Any, groups: int) -> list[list[str]]:
        """Return each group's parameter names at a step."""
        origin = [groups, *(int(meta[k]) for k in ("members", "member_count", "groups_crc"))]
        if origin == self._grouped[0]:  # the same rows, checked then
            return self._grouped[1]
        rows = self._tables.rows(schema.GROUPS, meta["members"], meta["member_count"], f"step {t}")
        self._check(t, meta, "groups_crc", rows)
        members: list[list[str]] = [[] for _ in range(groups)]
        for g, parameter in rows.tolist():
            if not (0 <= g < groups and 0 <= parameter < len(self._names)):
                raise self._broken(t, schema.GROUPS)
            members[g].append(self._names[parameter])
        self._grouped = origin, members
        return members

    def _micro_batches(self, t: int, meta: Any) -> tuple[MicroBatch, ...]:
        where = f"step {t}"
        rows = self._micro.checked(meta["micro"], meta["micro_count"], where, meta["micro_crc"])
        self._check(t, meta, "micro_crc", rows)
        whole = self._tables.rows(schema.IDS, meta["ids"], meta["count"], where)
        found, names, weights, random = [], [], [], []
        for row in rows:
            first = int(row["ids"] - meta["ids"])
            numbers = whole[first : first + row["count"]] if first >= 0 else whole[:0]
            if len(numbers) != row["count"]:
                raise self._broken(t, schema.MICRO)
            ids = self._ids(t, numbers.tolist())
            names += [numbers, *(i.encode() for i in ids if isinstance(i, str))]
            state = self._row(t, schema.SNAP_RANDOM, row["rng"])
            random.append(state)
            if row["coef"] == schema.NONE:
                coefficients = np.full(len(ids), row["weight"])
            else:
                coefficients = self._tables.rows(
                    schema.COEFFICIENTS, row["coef"], row["count"], where
                )
                weights.append(coefficients)
            found.append(
                MicroBatch(
                    tuple(ids),
                    torch.from_numpy(coefficients),
                    self._random(state) if len(state) else None,
                    self._payload(t, row) if row["batch"] != schema.NONE else None,
                )
            )
        for field, parts in (("ids_crc", names), ("coef_crc", weights), ("rng_crc", random)):
            self._check(t, meta, field, *parts)
        return tuple(found)

    def _ids(self, t: int, numbers: list[int]) -> list[ID]:
        if not self._has_strings:
            return list(numbers)
        known = self.strings.all(max(numbers, default=-1) + 1)
        if any(not 0 <= k < len(known) for k in numbers):
            raise self._broken(t, schema.IDS)
        return [known[k] for k in numbers]

    def _payload(self, t: int, row: Any) -> Any:
        start, size, crc = int(row["batch"]), int(row["batch_bytes"]), int(row["batch_crc"])

        def read() -> bytes:
            words = -(-size // schema.WORD.itemsize)
            found = self._tables.rows(schema.SNAP_BATCHES, start, words, f"step {t}")
            data = found.tobytes()[:size]
            if zlib.crc32(data) != crc:
                raise self._broken(t, schema.SNAP_BATCHES)
            return data

        return read

    def _random(self, state: Row) -> RandomState:
        row: Tensor = torch.from_numpy(state)
        cuda = torch.split(row[_CPU_STATE:], _CUDA_STATE)
        return RandomState(row[:_CPU_STATE], dict(zip(self._devices, cuda, strict=False)))
