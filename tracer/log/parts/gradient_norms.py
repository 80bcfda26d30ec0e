"""The norm of each parameter's gradient: row t is step t's."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Table
from tracer.log.parts.part import GroupPart
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.records import ParameterGroup

NORMS = "steps/norms"


class GradientNorms(GroupPart):
    """A column for each parameter of the model, NaN where it had no gradient."""

    tables: ClassVar = {
        NORMS: Table(np.dtype("<f8"), lambda facts: len(facts.names)),
    }
    checksums: ClassVar = {"norms_crc": NORMS}

    def encode(self, sink: Sink, groups: Sequence[ParameterGroup]) -> Sequence[int]:
        """Append a row."""
        numbers = self._facts.numbers
        row = array("d", [math.nan]) * max(1, len(numbers))
        for group in groups:
            for name, norm in zip(group.names, group.norms, strict=False):
                row[numbers[name]] = norm
        sink.add(NORMS, row.tobytes(), 1, "norms_crc")
        return ()

    def decode(self, source: Source, names: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Return the norms of each group's parameters."""
        numbers = self._facts.numbers
        row = source.ahead(NORMS, source.t, 1, "norms_crc")[0].tolist()
        return [{"norms": tuple([row[numbers[name]] for name in members])} for members in names]

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return the number of steps."""
        return {NORMS: len(meta)}
