"""The coefficients of a micro-batch's losses: one number if they are all alike, else each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.log.parts.facts import Table
from tracer.log.parts.part import BatchPart, last_end
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import NONE, Readable, Source
from tracer.records import MicroBatch

COEFFICIENTS = "steps/coef"


class Coefficients(BatchPart):
    """One entry an ID, for micro-batches whose coefficients differ."""

    tables: ClassVar = {COEFFICIENTS: Table(np.dtype("<f8"), chunk=1024)}
    columns: ClassVar = {"coef": "<i8", "weight": "<f8"}
    checksums: ClassVar = {"coef_crc": COEFFICIENTS}

    def encode(self, sink: Sink, batches: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        """Append what differs; return where it begins, or the one number."""
        return [self._encoded(sink, batch.coefficients) for batch in batches]

    def _encoded(self, sink: Sink, values: Tensor) -> tuple[int, float]:
        found = values.numpy()
        if values.stride() == (0,) or (found == found[0]).all():
            return NONE, float(found[0])
        return sink.add(COEFFICIENTS, found.tobytes(), len(found), "coef_crc"), 0.0

    def decode(self, source: Source, rows: NDArray[Any]) -> list[Tensor]:
        """Return the coefficients; there are as many as IDs, which were read before."""
        return [
            torch.from_numpy(
                np.full(count, weight)
                if start == NONE
                else source.rows(COEFFICIENTS, start, count, "coef_crc")
            )
            for start, count, weight in rows[["coef", "count", "weight"]].tolist()
        ]

    def end(self, tables: Readable, micro: NDArray[Any]) -> dict[str, int]:
        """Return the number of entries."""
        return {COEFFICIENTS: last_end(micro["coef"], micro["count"])}
