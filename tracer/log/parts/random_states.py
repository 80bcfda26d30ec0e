"""Torch's random state when a micro-batch's forward began: a byte row when a rank's changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tracer.codec.layout import Row
from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import BatchPart, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE, Readable, Source
from tracer.records import MicroBatch, RandomState

SNAP_RANDOM = "snap/rng"
_CPU_STATE, _CUDA_STATE = len(torch.get_rng_state()), 16


class RandomStates(BatchPart):
    """The CPU generator's bytes, then those of each recorded CUDA device."""

    tables: ClassVar = {
        SNAP_RANDOM: Table(np.dtype("u1"), lambda facts: facts.random_bytes),
    }
    columns: ClassVar = {"rng": "<i8"}
    checksums: ClassVar = {"rng_crc": SNAP_RANDOM}

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._last: dict[int, tuple[bytes, int]] = {}  # of each rank: its last row, and its number

    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Append a row where the state differs from the rank's last one; return its number."""
        return [(self._encoded(sink, batch.random_state, batch.rank),) for batch in batches]

    def _encoded(self, sink: Sink, state: RandomState | None, rank: int) -> int:
        if state is None:
            return NONE
        whole = [state.cpu, *(state.cuda[device] for device in sorted(state.cuda))]
        data = b"".join([one.numpy().tobytes() for one in whole])
        sink.sum("rng_crc", data)
        if self._last.get(rank, (b"", NONE))[0] != data:
            self._last[rank] = data, sink.tables.extend(SNAP_RANDOM, data, 1)
        return self._last[rank][1]

    def restore(self, sink: Sink, micro: NDArray[Any]) -> None:
        """Take up the last row of each rank."""
        for number, rank in micro[micro["rng"] != NONE][["rng", "rank"]].tolist():
            row = sink.tables.rows(SNAP_RANDOM, number, 1).tobytes()
            self._last[rank] = row, number

    def decode(self, source: Source, rows: NDArray[Any]) -> list[RandomState | None]:
        """Return the states; None where no forward was seen."""
        found = [source.row(SNAP_RANDOM, number, "rng_crc") for number in rows["rng"].tolist()]
        return [self._decoded(row) if len(row) else None for row in found]

    def _decoded(self, row: Row) -> RandomState:
        whole = torch.from_numpy(row)
        cuda = torch.split(whole[_CPU_STATE:], _CUDA_STATE)
        return RandomState(whole[:_CPU_STATE], dict(zip(self._facts.devices, cuda, strict=False)))

    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return the number of rows that some micro-batches point at."""
        return {SNAP_RANDOM: last_end(micro["rng"])}
