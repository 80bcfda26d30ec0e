"""The numbers of each parameter group, and the norm of its gradient: a row a group and step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tracer.log.parts.facts import Facts, Table
from tracer.log.parts.part import GroupPart
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Readable, Source
from tracer.records import GRADIENT_NORM, ParameterGroup

HYPER = "steps/hyper"


class Hyperparameters(GroupPart):
    """A column for each name; ``decode`` returns numbers by name, and the gradient's norm."""

    tables: ClassVar = {
        HYPER: Table(np.dtype("<f8"), lambda facts: len(facts.hyperparameters)),
    }
    columns = ("hyper", "groups")
    checksums: ClassVar = {"hyper_crc": HYPER}

    def encode(self, sink: Sink, groups: Sequence[ParameterGroup]) -> Sequence[int]:
        """Append a row for each group; NaN where it lacks a number."""
        numbers = [
            group.gradient_norm
            if name == GRADIENT_NORM
            else group.hyperparameters.get(name, math.nan)
            for group in groups
            for name in self._facts.hyperparameters
        ]
        start = sink.add(HYPER, array("d", numbers).tobytes(), len(groups), "hyper_crc")
        return start, len(groups)

    def decode(self, source: Source, names: Sequence[Sequence[str]]) -> list[tuple[Any, ...]]:
        """Return each group's numbers and its gradient's norm."""
        rows = source.rows(HYPER, source.meta["hyper"], len(names), "hyper_crc")
        found = []
        for row in rows.tolist():
            numbers = dict(zip(self._facts.hyperparameters, row, strict=True))
            found.append((numbers, numbers.pop(GRADIENT_NORM, math.nan)))
        return found

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return where the last step's rows end."""
        return {HYPER: int(meta[-1]["hyper"] + meta[-1]["groups"])}


def ever_used(tables: Readable, facts: Facts, hyperparameter: str) -> bool:
    """Return whether any step had a group in which a number was there and not zero."""
    rows = tables.rows(HYPER, 0, tables.length(HYPER), "all steps")
    used = rows[:, [k for k, name in enumerate(facts.hyperparameters) if name == hyperparameter]]
    return bool((np.nan_to_num(used) != 0).any())


def encode_names(names: Iterable[str]) -> str:
    """Return a list of names as the text of one attribute."""
    return "\n".join(names)


def decode_names(text: str) -> list[str]:
    """Return the names in the text of one attribute."""
    return text.split("\n")
