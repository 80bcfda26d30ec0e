"""Turns a step's record into rows of the log's tables, and their checksums into its meta row."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tracer import schema
from tracer.layout import Row
from tracer.records import ID, MicroBatch, ParameterGroup, RandomState, Step
from tracer.tables import Tables


class StepRows:
    """Appends the small rows of each step.

    Args:
        tables: Where they go.
        names: Names of the model's parameters, in order.
        hyperparameters: Names of the numbers logged for each group.
    """

    def __init__(
        self, tables: Tables, names: Sequence[str], hyperparameters: Sequence[str]
    ) -> None:
        self._tables = tables
        self._names = {name: k for k, name in enumerate(names)}
        self._hyperparameters = list(hyperparameters)
        self._interned: dict[str, int] = {}
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._members: NDArray[Any] = np.zeros(0, schema.GROUP_DTYPE)
        self._first_member = 0
        self._last: dict[str, bytes] = {}  # of the tables that grow when something changes
        self._before = b""
        self._pieces: dict[str, list[bytes]] = {}  # what each checksum is taken of

    @property
    def has_strings(self) -> bool:
        """Whether IDs are strings."""
        return bool(self._interned)

    def restore(
        self, meta: NDArray[Any], groups: Sequence[Sequence[str]], strings: Sequence[str]
    ) -> None:
        """Go on behind a step that is on file.

        Args:
            meta: Its meta row, ``(1,)``.
            groups: Its parameter names by group.
            strings: The string IDs so far.
        """
        self._groups = tuple(tuple(names) for names in groups)
        self._first_member = int(meta[0]["members"])
        self._members = self._member_rows(self._groups)
        self._interned = {text: k for k, text in enumerate(strings)}
        for name in (schema.MASKS, schema.SNAP_BUFFERS, schema.SNAP_RANDOM):
            last = self._tables.last(name)
            if last is not None:
                self._last[name] = last.tobytes()
        if meta[0]["buffers"] >= 0:
            self._before = self._tables.row(schema.SNAP_BUFFERS, meta[0]["buffers"]).tobytes()

    def append(self, step: Step, before: Row, after: Row) -> NDArray[Any]:
        """Append a step's rows; return its meta row ``(1,)``, without the parameters' checksums."""
        meta = np.zeros(1, schema.META_DTYPE)
        row = meta[0]
        self._pieces = {name: [] for name in schema.CHECKSUMS.values()}
        row["step"], row["count"] = step.index, len(step.batch_ids)
        row["epoch"] = schema.NONE if step.epoch is None else step.epoch
        row["gradient_norm"], row["clip_factor"] = step.gradient_norm, step.clip_factor
        row["ids"] = self._tables[schema.IDS]
        row["micro"], row["micro_count"] = self._micro_batches(step.micro_batches)
        row["hyper"], row["groups"] = self._hyper(step.groups)
        row["members"], row["member_count"] = self._first_member, len(self._members)
        row["mask"] = self._changed(schema.MASKS, self._mask(step))
        row["buffers"] = self._changed(schema.SNAP_BUFFERS, before)
        row["buffers_after"] = self._changed(schema.SNAP_BUFFERS, after)
        self._before = before.tobytes()
        for field, name in schema.CHECKSUMS.items():
            row[field] = zlib.crc32(b"".join(self._pieces[name]))
        return meta

    def buffers_are(self, buffers: Row) -> bool:
        """Return whether these are the last buffers logged."""
        return buffers.tobytes() == self._last.get(schema.SNAP_BUFFERS, b"")

    def amend_buffers(self, meta: NDArray[Any], after: Row) -> None:
        """Change what the last step's meta row says of the buffers after it."""
        name = schema.SNAP_BUFFERS
        self._pieces = {name: [self._before]}
        meta["buffers_after"] = self._changed(name, after)
        meta["buffers_crc"] = zlib.crc32(b"".join(self._pieces[name]))

    def _add(self, name: str, rows: NDArray[Any]) -> int:
        self._pieces[name].append(rows.tobytes())
        return self._tables.extend(name, rows)

    def _changed(self, name: str, row: Row) -> int:
        """Append a row if it differs from the table's last one; return the row's number."""
        data = row.tobytes()
        if not data:
            return schema.NONE
        self._pieces[name].append(data)
        if data == self._last.get(name):
            return self._tables[name] - 1
        self._last[name] = data
        return self._tables.extend(name, row[None])

    def _mask(self, step: Step) -> Row:
        mask = np.zeros((2, len(self._names)), np.uint8)
        for row, chosen in zip(mask, (step.without_gradient, step.frozen), strict=True):
            row[[self._names[name] for name in chosen]] = 1
        return mask.reshape(-1)

    def _hyper(self, groups: Sequence[ParameterGroup]) -> tuple[int, int]:
        names = tuple(group.names for group in groups)
        if names != self._groups:
            self._groups, self._members = names, self._member_rows(names)
            self._first_member = self._tables.extend(schema.GROUPS, self._members)
        self._pieces[schema.GROUPS].append(self._members.tobytes())
        rates = [
            [group.hyperparameters.get(key, np.nan) for key in self._hyperparameters]
            for group in groups
        ]
        return self._add(schema.HYPER, np.array(rates, "<f8")), len(groups)

    def _member_rows(self, groups: Sequence[Sequence[str]]) -> NDArray[Any]:
        rows = [(g, self._names[name]) for g, names in enumerate(groups) for name in names]
        return np.array(rows, schema.GROUP_DTYPE)

    def _micro_batches(self, batches: Sequence[MicroBatch]) -> tuple[int, int]:
        rows = np.zeros(len(batches), schema.MICRO_DTYPE)
        for row, batch in zip(rows, batches, strict=True):
            row["ids"], row["count"] = self._ids(batch.ids), len(batch.ids)
            row["coef"], row["weight"] = self._coefficients(batch.coefficients)
            row["rng"] = self._random(batch.random_state)
            row["batch"], row["batch_bytes"], row["batch_crc"] = self._batch(batch)
        return self._add(schema.MICRO, rows), len(rows)

    def _ids(self, ids: Sequence[ID]) -> int:
        numbers = np.array([self._number(identity) for identity in ids], "<i8")
        start = self._add(schema.IDS, numbers)
        self._pieces[schema.IDS] += [i.encode() for i in ids if isinstance(i, str)]
        return start

    def _number(self, identity: ID) -> int:
        """Return an integer ID, or the number of an interned string."""
        if isinstance(identity, int):
            return identity
        if identity not in self._interned:
            data = np.frombuffer(identity.encode(), np.uint8)
            end = self._tables.extend(schema.STRINGS, data) + len(data)
            self._tables.extend(schema.STRING_ENDS, np.array([end], "<i8"))
            self._interned[identity] = len(self._interned)
        return self._interned[identity]

    def _coefficients(self, values: torch.Tensor) -> tuple[int, float]:
        """Write coefficients unless they are all alike."""
        found = values.numpy()
        if (found == found[0]).all():
            return schema.NONE, float(found[0])
        return self._add(schema.COEFFICIENTS, found), 0.0

    def _random(self, state: RandomState | None) -> int:
        if state is None:
            return schema.NONE
        whole = [state.cpu, *(state.cuda[device] for device in sorted(state.cuda))]
        return self._changed(schema.SNAP_RANDOM, torch.cat(whole).numpy())

    def _batch(self, batch: MicroBatch) -> tuple[int, int, int]:
        """Write the recorded batch, filled up to whole words."""
        if batch.payload is None:
            return schema.NONE, 0, 0
        data = batch.payload()
        words = np.frombuffer(data + bytes(-len(data) % schema.WORD.itemsize), schema.WORD)
        return self._tables.extend(schema.SNAP_BATCHES, words), len(data), zlib.crc32(data)
