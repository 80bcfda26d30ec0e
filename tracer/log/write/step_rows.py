"""Turns a step's record into rows of the log's tables, and their checksums into its meta row."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tracer.codec.layout import Row
from tracer.log import schema
from tracer.log.write.tables import Tables
from tracer.records import GRADIENT_NORM, ID, MicroBatch, ParameterGroup, RandomState, Step


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
        self._members, self._first_member = b"", 0  # rows of the groups
        self._chosen: tuple[frozenset[str], ...] = ()  # what the last mask says
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

    def append(
        self, step: Step, before: Row, after: Row, checksums: tuple[int, int]
    ) -> list[float]:
        """Append a step's rows.

        Args:
            step: The step.
            before: The buffers before it.
            after: The buffers after it.
            checksums: Of the parameters before and after it.

        Returns:
            Its meta row.
        """
        self._pieces = {name: [] for name in schema.CHECKSUMS.values()}
        ids = self._tables[schema.IDS]
        micro = self._micro_batches(step.micro_batches)
        hyper = self._hyper(step.groups)
        mask = self._mask(step)
        self._before = before.tobytes()
        buffers = self._changed(schema.SNAP_BUFFERS, self._before)
        buffers_after = self._changed(schema.SNAP_BUFFERS, after.tobytes())
        return [
            step.index,
            schema.NONE if step.epoch is None else step.epoch,
            ids,
            self._tables[schema.IDS] - ids,
            micro,
            len(step.micro_batches),
            hyper,
            len(step.groups),
            self._first_member,
            len(self._members) // schema.GROUP_DTYPE.itemsize,
            mask,
            buffers,
            buffers_after,
            step.gradient_norm,
            step.clip_factor,
            *checksums,
            *(zlib.crc32(b"".join(pieces)) for pieces in self._pieces.values()),
            0,
        ]

    def buffers_are(self, buffers: Row) -> bool:
        """Return whether these are the last buffers logged."""
        return buffers.tobytes() == self._last.get(schema.SNAP_BUFFERS, b"")

    def amend(self, meta: list[float], after: Row, parameters_after_crc: int) -> None:
        """Change what the last step's meta row says of what came after it."""
        name = schema.SNAP_BUFFERS
        self._pieces = {name: [self._before]}
        changed = {
            "buffers_after": self._changed(name, after.tobytes()),
            "buffers_crc": zlib.crc32(b"".join(self._pieces[name])),
            "parameters_after_crc": parameters_after_crc,
        }
        for field, value in changed.items():
            meta[list(schema.META_DTYPE.names or ()).index(field)] = value

    def _add(self, name: str, data: bytes, rows: int) -> int:
        self._pieces[name].append(data)
        return self._tables.extend(name, data, rows)

    def _changed(self, name: str, data: bytes) -> int:
        """Append a row if it differs from the table's last one; return the row's number."""
        if not data:
            return schema.NONE
        self._pieces[name].append(data)
        if data == self._last.get(name):
            return self._tables[name] - 1
        self._last[name] = data
        return self._tables.extend(name, data, 1)

    def _mask(self, step: Step) -> int:
        chosen = (step.without_gradient, step.frozen)
        name = schema.MASKS
        if chosen == self._chosen:
            return self._changed(name, self._last[name])
        self._chosen = chosen
        mask = np.zeros((2, len(self._names)), np.uint8)
        for row, names in zip(mask, chosen, strict=True):
            row[[self._names[one] for one in names]] = 1
        return self._changed(name, mask.tobytes())

    def _hyper(self, groups: Sequence[ParameterGroup]) -> int:
        names = tuple([group.names for group in groups])
        if names != self._groups:
            self._groups, self._members = names, self._member_rows(names)
            count = len(self._members) // schema.GROUP_DTYPE.itemsize
            self._first_member = self._tables.extend(schema.GROUPS, self._members, count)
        self._pieces[schema.GROUPS].append(self._members)
        rates = [
            group.gradient_norm
            if key == GRADIENT_NORM
            else group.hyperparameters.get(key, math.nan)
            for group in groups
            for key in self._hyperparameters
        ]
        start = self._add(schema.HYPER, array("d", rates).tobytes(), len(groups))
        if schema.NORMS in self._tables:
            self._norms(groups)
        return start

    def _norms(self, groups: Sequence[ParameterGroup]) -> None:
        """Append the norms of the parameters' gradients, in the order of the layout."""
        row = array("d", [math.nan]) * max(1, len(self._names))
        for group in groups:
            for name, norm in zip(group.names, group.norms, strict=False):
                row[self._names[name]] = norm
        self._pieces[schema.HYPER].append(row.tobytes())
        self._tables.extend(schema.NORMS, row.tobytes(), 1)

    def _member_rows(self, groups: Sequence[Sequence[str]]) -> bytes:
        rows = [(g, self._names[name]) for g, names in enumerate(groups) for name in names]
        return np.array(rows, schema.GROUP_DTYPE).tobytes()

    def _micro_batches(self, batches: Sequence[MicroBatch]) -> int:
        rows = b"".join(
            [
                schema.MICRO_STRUCT.pack(
                    self._ids(batch.ids),
                    len(batch.ids),
                    *self._coefficients(batch.coefficients),
                    self._random(batch.random_state),
                    *self._batch(batch),
                )
                for batch in batches
            ]
        )
        # a step's recorded batches begin a chunk: HDF5 writes a compressed one anew, and its old
        # place is lost, whenever something is added to it
        gap = -self._tables[schema.SNAP_BATCHES] % schema.TABLES[schema.SNAP_BATCHES].chunk
        self._tables.extend(schema.SNAP_BATCHES, bytes(gap * schema.WORD.itemsize), gap)
        return self._add(schema.MICRO, rows, len(batches))

    def _ids(self, ids: Sequence[ID]) -> int:
        if isinstance(ids[0], int):
            integers = array("q", cast("Sequence[int]", ids))
            return self._add(schema.IDS, integers.tobytes(), len(ids))
        numbers = array("q", [self._number(str(identity)) for identity in ids])
        start = self._add(schema.IDS, numbers.tobytes(), len(ids))
        self._pieces[schema.IDS] += [str(identity).encode() for identity in ids]
        return start

    def _number(self, identity: str) -> int:
        """Return the number of an interned string."""
        if identity not in self._interned:
            data = identity.encode()
            end = self._tables.extend(schema.STRINGS, data, len(data)) + len(data)
            self._tables.extend(schema.STRING_ENDS, array("q", [end]).tobytes(), 1)
            self._interned[identity] = len(self._interned)
        return self._interned[identity]

    def _coefficients(self, values: torch.Tensor) -> tuple[int, float]:
        """Write coefficients unless they are all alike."""
        found = values.numpy()
        if values.stride() == (0,) or (found == found[0]).all():
            return schema.NONE, float(found[0])
        return self._add(schema.COEFFICIENTS, found.tobytes(), len(found)), 0.0

    def _random(self, state: RandomState | None) -> int:
        if state is None:
            return schema.NONE
        whole = [state.cpu, *(state.cuda[device] for device in sorted(state.cuda))]
        return self._changed(
            schema.SNAP_RANDOM, b"".join([part.numpy().tobytes() for part in whole])
        )

    def _batch(self, batch: MicroBatch) -> tuple[int, int, int]:
        """Write the recorded batch, filled up to whole words."""
        if batch.payload is None:
            return schema.NONE, 0, 0
        data = batch.payload()
        whole = data + bytes(-len(data) % schema.WORD.itemsize)
        words = len(whole) // schema.WORD.itemsize
        return self._tables.extend(schema.SNAP_BATCHES, whole, words), len(data), zlib.crc32(data)
