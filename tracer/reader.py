"""RunLog: reads a run log, checks every sum, never imports the task that it names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer import schema
from tracer.errors import LogError
from tracer.opening import open_file
from tracer.packing import unpack
from tracer.records import ID, MicroBatch, ParameterGroup, RandomState, Step

_CPU_STATE = len(torch.get_rng_state())
_CUDA_STATE = 16


def open_log(path: str | Path) -> RunLog:
    """Open a run log for reading, also while training writes it.

    Args:
        path: The file.

    Raises:
        LogError: It is missing, unreadable, not a run log, or of a newer format.
    """
    return RunLog(path)


class RunLog:
    """A traced run: steps ``0..T−1`` and parameters ``w_0..w_T``.

    Attributes:
        path: The file.
        metadata: What is known of the run: versions, device, optimizer, task, ...
        parameter_layout: Shape and dtype of every parameter of the model, by name.
        buffer_layout: Likewise for buffers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        try:
            self._fields = schema.read_layout(self._file[schema.PARAMETERS])
            self._buffer_fields = schema.read_layout(self._file[schema.BUFFERS])
            self._hyperparameters = str(self._file.attrs["hyperparameters"]).split("\n")
            self._length = self._count()
            self._group_rows = self._file[schema.GROUPS][:]
            self._strings: list[str] = []
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            self.close()
            raise LogError(
                f"{self.path} is a damaged run log: {error}; restore it from a copy."
            ) from error
        self.parameter_layout = schema.shapes(self._fields)
        self.buffer_layout = schema.shapes(self._buffer_fields)

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the run's metadata; ``closed`` says whether the log was ended cleanly."""
        found = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in self._file.attrs.items()
        }
        found["task"] = found.get("task") or None
        status = self._file[schema.STATUS][0]
        found["closed"] = bool(status["closed"])
        found["id_type"] = "str" if status["strings"] else "int"
        return found

    def batch_ids(self, t: int) -> list[ID]:
        """Return the IDs of step ``t``, in order, with repeats."""
        meta = self._meta(t)
        return self._ids(meta["ids"], meta["count"])

    def learning_rate(self, t: int) -> tuple[float, ...]:
        """Return the learning rate that step ``t`` used, one for each group."""
        return self.step(t).learning_rate

    def parameters(self, t: int) -> dict[str, Tensor]:
        """Return ``w_t``, the parameters before step ``t``; ``t = T`` gives the final ones.

        Raises:
            IndexError: There is no such state.
            LogError: The row does not match its checksum.
        """
        self._check_index(t, len(self) + 1)
        if len(self):
            meta = self._meta(min(t, len(self) - 1))
            expected = meta["parameters_after_crc" if t == len(self) else "parameters_crc"]
        row = self._file[schema.WEIGHTS][t][: schema.row_bytes(self._fields)]
        if len(self) and zlib.crc32(row) != expected:
            raise LogError(
                f"{self.path}: the parameters before step {t} do not match their checksum; "
                "the file is damaged, restore it from a copy."
            )
        return unpack(row, self._fields)

    def buffers(self, t: int) -> dict[str, Tensor]:
        """Return ``β_t``, the buffers before step ``t``'s first forward; ``T``: the final ones."""
        self._check_index(t, len(self) + 1)
        if not self._buffer_fields or not len(self):
            return {}
        meta = self._meta(min(t, len(self) - 1))
        number = meta["buffers_after" if t == len(self) else "buffers"]
        return unpack(self._row(schema.SNAP_BUFFERS, number, t), self._buffer_fields)

    def steps(self) -> Iterator[Step]:
        """Yield every step, in order."""
        for t in range(len(self)):
            yield self.step(t)

    def step(self, t: int) -> Step:
        """Return step ``t``.

        Raises:
            IndexError: There is no such step.
            LogError: The record does not match its checksum.
        """
        meta = self._meta(t)
        hyper = self._file[schema.HYPER][meta["hyper"] : meta["hyper"] + meta["groups"]]
        mask = self._row(schema.MASKS, meta["mask"], t).reshape(2, -1)
        names = [field.name for field in self._fields]
        members = self._members(t)
        return Step(
            index=t,
            epoch=None if meta["epoch"] < 0 else int(meta["epoch"]),
            micro_batches=self._micro_batches(meta, t),
            groups=tuple(
                ParameterGroup(
                    tuple(names[k] for k in members.get(g, [])),
                    dict(zip(self._hyperparameters, map(float, row), strict=True)),
                )
                for g, row in enumerate(hyper)
            ),
            gradient_norm=float(meta["gradient_norm"]),
            clip_factor=float(meta["clip_factor"]),
            without_gradient=frozenset(n for n, on in zip(names, mask[0], strict=False) if on),
            frozen=frozenset(n for n, on in zip(names, mask[1], strict=False) if on),
        )

    def optimizer_state(self) -> Iterator[tuple[int, int, str, Tensor]]:
        """Yield what is on file of the optimizer's state.

        Yields:
            The step before which it held, the parameter's index, the state's key, its value.
        """
        stream = self._file[schema.SNAP_OPTIMIZER]
        for row in self._file[schema.STATE_SCHEMA][:]:
            start = int(row["offset"])
            field = schema.Field(
                row["key"].decode(),
                0,
                tuple(int(n) for n in row["shape"][: row["dims"]]),
                schema.torch_dtype(row["dtype"].decode()),
            )
            value = unpack(stream[start : start + field.nbytes], [field])[field.name]
            yield int(row["step"]), int(row["parameter"]), field.name, value

    def _count(self) -> int:
        """Return how many steps have their meta row and the parameters after it."""
        steps, rows = len(self._file[schema.META]), len(self._file[schema.WEIGHTS])
        return int(max(0, min(steps, rows - 1)))

    def _check_index(self, t: int, count: int) -> None:
        if not 0 <= t < count:
            raise IndexError(f"{self.path} holds {len(self)} steps; there is no number {t}.")

    def _meta(self, t: int) -> Any:
        self._check_index(t, len(self))
        meta = self._file[schema.META][t : t + 1]
        try:
            parts = schema.record_parts(self._file, meta)
            sound = meta[0]["record_crc"] == schema.record_crc(meta, parts)
        except (OSError, ValueError, IndexError, OverflowError):
            sound = False
        if not sound or meta[0]["step"] != t:
            raise LogError(
                f"{self.path}: the record of step {t} does not match its checksum; the file is "
                "damaged, restore it from a copy."
            )
        return meta[0]

    def _row(self, name: str, number: int, t: int) -> NDArray[np.uint8]:
        table = self._file[name]
        if not 0 <= number < len(table):
            raise LogError(f"{self.path}: step {t} points at a row of {name} that is not there.")
        return np.asarray(table[number])

    def _ids(self, start: int, count: int) -> list[ID]:
        numbers = self._file[schema.IDS][start : start + count].tolist()
        if not self._file[schema.STATUS][0]["strings"]:
            return list(numbers)
        if max(numbers) >= len(self._strings):
            ends = self._file[schema.STRING_ENDS][:].tolist()
            data = self._file[schema.STRINGS][:].tobytes()
            starts = [0, *ends[:-1]]
            self._strings = [data[a:b].decode() for a, b in zip(starts, ends, strict=True)]
        return [self._strings[k] for k in numbers]

    def _micro_batches(self, meta: Any, t: int) -> tuple[MicroBatch, ...]:
        rows = self._file[schema.MICRO][meta["micro"] : meta["micro"] + meta["micro_count"]]
        return tuple(
            MicroBatch(
                tuple(self._ids(row["ids"], row["count"])),
                torch.from_numpy(
                    self._file[schema.COEFFICIENTS][row["coef"] : row["coef"] + row["count"]]
                ),
                self._random(row["rng"], t),
            )
            for row in rows
        )

    def _random(self, number: int, t: int) -> RandomState | None:
        if number < 0:
            return None
        row = torch.from_numpy(self._row(schema.SNAP_RANDOM, number, t))
        devices = [int(k) for k in str(self._file.attrs["cuda_devices"]).split()]
        cuda = torch.split(row[_CPU_STATE:], _CUDA_STATE)
        return RandomState(row[:_CPU_STATE], dict(zip(devices, cuda, strict=False)))

    def _members(self, t: int) -> dict[int, list[int]]:
        """Return each group's parameters at a step: the last table that began by then."""
        rows = self._group_rows
        began = rows["step"][rows["step"] <= t]
        current = rows[rows["step"] == began.max()] if len(began) else rows[:0]
        members: dict[int, list[int]] = {}
        for row in current:
            members.setdefault(int(row["group"]), []).append(int(row["parameter"]))
        return members
