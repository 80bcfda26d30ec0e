"""LogWriter: appends steps to one HDF5 file; a step exists once its meta row is on file.

A step is appended together with the parameters that it led to, so that ``w_t`` and ``w_{t+1}``
of every readable step are readable. The file is written in SWMR mode: it can be read meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer import schema
from tracer.packing import Row, pack
from tracer.records import ID, MicroBatch, ParameterGroup, RandomState, Step


class LogWriter:
    """Writes one run log.

    Args:
        path: The file; it must not exist unless ``overwrite``.
        parameters: The model's parameters, in order.
        buffers: The model's buffers, in order.
        hyperparameters: Names of the numbers logged for each group.
        attributes: Metadata of the run.
        random_bytes: Length of a row of random state.
    """

    def __init__(
        self,
        path: Path,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        hyperparameters: Sequence[str],
        random_bytes: int,
        attributes: Mapping[str, Any],
    ) -> None:
        self._names = {name: k for k, name in enumerate(parameters)}
        self._hyperparameters = list(hyperparameters)
        self._interned: dict[str, int] = {}
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._last = {"mask": b"", "buffers": b"", "random": b""}
        self._steps = 0
        self._crc = 0
        self._file = h5py.File(path, "w", libver="latest", fs_strategy="page", fs_page_size=4096)
        schema.create(
            self._file,
            schema.fields(dict(parameters)),
            schema.fields(dict(buffers)),
            hyperparameters=hyperparameters,
            random_bytes=random_bytes,
            attributes=dict(attributes),
        )
        self._file.swmr_mode = True
        # opened once: looking a dataset up costs more than a small write
        self._tables: dict[str, h5py.Dataset] = {}
        self._file.visititems(self._keep)
        self._length = {name: len(table) for name, table in self._tables.items()}

    def __len__(self) -> int:
        return self._steps

    def _keep(self, name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            self._tables[name] = item

    def begin(self, parameters: Row) -> None:
        """Write ``w_0``."""
        self._crc = self._snapshot(0, parameters)
        self._file.flush()

    def append(self, step: Step, parameters: Row, before: Row, after: Row) -> None:
        """Write step ``t`` with ``w_{t+1}``, ``β_t`` and ``β_{t+1}``."""
        meta = np.zeros(1, schema.META_DTYPE)
        row = meta[0]
        row["step"], row["count"] = step.index, len(step.batch_ids)
        row["epoch"] = schema.NONE if step.epoch is None else step.epoch
        row["gradient_norm"], row["clip_factor"] = step.gradient_norm, step.clip_factor
        parts: list[bytes] = []  # as schema.record_parts reads them
        row["ids"], row["micro"], row["micro_count"] = self._micro_batches(
            step.micro_batches, parts
        )
        row["hyper"], row["groups"] = self._hyper(step.index, step.groups, parts)
        row["mask"] = self._changed("mask", schema.MASKS, self._mask(step), parts)
        row["buffers"] = self._changed("buffers", schema.SNAP_BUFFERS, before, parts)
        row["buffers_after"] = self._changed("buffers", schema.SNAP_BUFFERS, after, parts)
        row["parameters_crc"] = self._crc
        self._crc = self._snapshot(step.index + 1, parameters)
        self._commit(step.index, meta, parts)

    def amend(self, parameters: Row, buffers: Row) -> None:
        """Replace the last row if parameters or buffers are no longer what it says."""
        crc = zlib.crc32(parameters.data)
        if crc == self._crc and buffers.tobytes() == self._last["buffers"]:
            return
        self._crc = self._snapshot(self._steps, parameters)
        if self._steps:
            meta = self._tables[schema.META][self._steps - 1 : self._steps]
            meta["buffers_after"] = self._changed("buffers", schema.SNAP_BUFFERS, buffers, [])
            self._commit(self._steps - 1, meta, schema.record_parts(self._file, meta))

    def state(self, t: int, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Write the optimizer's state as it is before step ``t``, by parameter index."""
        for parameter, entries in state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensor = value
                elif isinstance(value, (bool, int, float)):
                    tensor = torch.tensor(value, dtype=torch.float64)
                else:
                    continue  # torch.optim keeps nothing else but None
                data = pack({key: tensor})
                row = np.zeros(1, schema.STATE_DTYPE)
                row["step"], row["parameter"], row["key"] = t, parameter, key.encode()
                row["dtype"] = schema.dtype_name(tensor.dtype).encode()
                row["dims"], row["bytes"] = tensor.dim(), len(data)
                row["shape"][0, : tensor.dim()] = tensor.shape
                row["offset"] = self._extend(schema.SNAP_OPTIMIZER, data)
                self._extend(schema.STATE_SCHEMA, row)
        self._file.flush()

    def flush(self) -> None:
        """Hand everything so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Mark the log as closed and close the file."""
        if not self._file:
            return
        self._status(closed=True)
        self._file.close()

    def _commit(self, t: int, meta: NDArray[Any], parts: Iterable[bytes]) -> None:
        meta["parameters_after_crc"] = self._crc
        meta["record_crc"] = schema.record_crc(meta, parts)
        self._put(schema.META, t, meta)
        self._steps = t + 1
        self._status(closed=False)
        self._file.flush()

    def _status(self, *, closed: bool) -> None:
        row = (self._steps, closed, bool(self._interned))
        self._tables[schema.STATUS][:] = np.array([row], schema.STATUS_DTYPE)

    def _snapshot(self, t: int, parameters: Row) -> int:
        if len(parameters):
            self._put(schema.WEIGHTS, t, parameters[None])
        return zlib.crc32(parameters.data)

    def _extend(self, name: str, rows: NDArray[Any]) -> int:
        """Append to a table; return where."""
        start = self._length[name]
        self._put(name, start, rows)
        return start

    def _put(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write rows of a table, which grows if need be."""
        table, stop = self._tables[name], start + len(rows)
        if stop > self._length[name]:
            table.resize(stop, axis=0)
            self._length[name] = stop
        table[start:stop] = rows

    def _changed(self, kind: str, name: str, row: Row, parts: list[bytes]) -> int:
        """Append a row if it differs from the table's last one; return the row's number."""
        data = row.tobytes()
        parts.append(data)
        if not data:
            return schema.NONE
        if data != self._last[kind]:
            self._last[kind] = data
            return self._extend(name, row[None])
        return self._length[name] - 1

    def _mask(self, step: Step) -> Row:
        mask = np.zeros((2, len(self._names)), np.uint8)
        mask[0, [self._names[name] for name in step.without_gradient]] = 1
        mask[1, [self._names[name] for name in step.frozen]] = 1
        return mask.reshape(-1)

    def _hyper(
        self, t: int, groups: Sequence[ParameterGroup], parts: list[bytes]
    ) -> tuple[int, int]:
        members = tuple(group.names for group in groups)
        if members != self._groups:
            self._groups = members
            rows = [(t, k, self._names[name]) for k, names in enumerate(members) for name in names]
            self._extend(schema.GROUPS, np.array(rows, schema.GROUP_DTYPE))
        rates = [
            [group.hyperparameters.get(key, np.nan) for key in self._hyperparameters]
            for group in groups
        ]
        values = np.array(rates, "<f8")
        parts.append(values.tobytes())
        return self._extend(schema.HYPER, values), len(groups)

    def _micro_batches(
        self, batches: Sequence[MicroBatch], parts: list[bytes]
    ) -> tuple[int, int, int]:
        rows = np.zeros(len(batches), schema.MICRO_DTYPE)
        first = self._length[schema.IDS]
        for row, batch in zip(rows, batches, strict=True):
            numbers = np.array([self._number(identity) for identity in batch.ids], "<i8")
            coefficients = batch.coefficients.numpy()
            parts += [numbers.tobytes(), coefficients.tobytes()]
            row["ids"], row["count"] = self._extend(schema.IDS, numbers), len(numbers)
            row["coef"] = self._extend(schema.COEFFICIENTS, coefficients)
            row["rng"] = self._random(batch.random_state, parts)
        parts.append(rows.tobytes())
        return first, self._extend(schema.MICRO, rows), len(rows)

    def _number(self, identity: ID) -> int:
        """Return an integer ID, or the number of an interned string."""
        if isinstance(identity, int):
            return identity
        if identity not in self._interned:
            data = np.frombuffer(identity.encode(), np.uint8)
            end = self._extend(schema.STRINGS, data) + len(data)
            self._extend(schema.STRING_ENDS, np.array([end], "<i8"))
            self._interned[identity] = len(self._interned)
        return self._interned[identity]

    def _random(self, state: RandomState | None, parts: list[bytes]) -> int:
        if state is None:
            parts.append(b"")
            return schema.NONE
        whole = [state.cpu, *(state.cuda[device] for device in sorted(state.cuda))]
        return self._changed("random", schema.SNAP_RANDOM, torch.cat(whole).numpy(), parts)
