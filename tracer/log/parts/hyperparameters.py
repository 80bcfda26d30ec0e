"""The numbers of each parameter group, and the norm of its gradient: a row a group and step.

Several optimizers have columns of their own, ``0/lr`` and ``1/lr``, and one for their number.
"""

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
from tracer.records import GRADIENT_NORM, OPTIMIZER, ParameterGroup

HYPER = "steps/hyper"


class Hyperparameters(GroupPart):
    """A column for each name."""

    tables: ClassVar = {
        HYPER: Table(np.dtype("<f8"), lambda facts: len(facts.hyperparameters)),
    }
    columns = ("hyper", "groups")
    checksums: ClassVar = {"hyper_crc": HYPER}

    def encode(self, sink: Sink, groups: Sequence[ParameterGroup]) -> Sequence[int]:
        """Append a row for each group; NaN where it lacks a number."""
        names = self._facts.hyperparameters
        several = self._facts.has_several
        rows = [numbers_of(group) if several else group.hyperparameters for group in groups]
        numbers = [
            group.gradient_norm if name == GRADIENT_NORM else row.get(name, math.nan)
            for group, row in zip(groups, rows, strict=True)
            for name in names
        ]
        start = sink.add(HYPER, array("d", numbers).tobytes(), len(groups), "hyper_crc")
        return start, len(groups)

    def decode(self, source: Source, names: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Return each group's numbers and its gradient's norm."""
        rows = source.rows(HYPER, source.meta["hyper"], len(names), "hyper_crc")
        found = []
        for row in rows.tolist():
            numbers = dict(zip(self._facts.hyperparameters, row, strict=True))
            norm = numbers.pop(GRADIENT_NORM, math.nan)
            fields = {"gradient_norm": norm, "hyperparameters": numbers}
            if self._facts.has_several:
                fields |= self._of_one(source, numbers)
            found.append(fields)
        return found

    def _of_one(self, source: Source, numbers: dict[str, float]) -> dict[str, Any]:
        """Return whose a group is, and the numbers that this optimizer has."""
        optimizer = numbers.pop(OPTIMIZER)
        if optimizer not in range(len(self._facts.optimizers)):
            raise source.broken(HYPER)
        start = column(int(optimizer), "")
        own = {n.removeprefix(start): x for n, x in numbers.items() if n.startswith(start)}
        return {"hyperparameters": own, "optimizer": int(optimizer)}

    def end(self, tables: Readable, meta: NDArray[Any]) -> dict[str, int]:
        """Return where the last step's rows end."""
        return {HYPER: int(meta[-1]["hyper"] + meta[-1]["groups"])}


def column(optimizer: int, name: str) -> str:
    """Return the name of a number of one of several optimizers among those of all."""
    return f"{optimizer}/{name}"


def numbers_of(group: ParameterGroup) -> dict[str, float]:
    """Return the numbers of a group of one of several optimizers by the names of their columns."""
    named = {column(group.optimizer, name): x for name, x in group.hyperparameters.items()}
    return {OPTIMIZER: float(group.optimizer), **named}


def ever_used(tables: Readable, facts: Facts, hyperparameter: str) -> bool:
    """Return whether any step had a group in which a number was there and not zero."""
    rows = tables.rows(HYPER, 0, tables.length(HYPER), "all steps")
    used = rows[:, facts.columns(hyperparameter)]
    return bool((np.nan_to_num(used) != 0).any())


def encode_names(names: Iterable[str]) -> str:
    """Return a list of names as the text of one attribute."""
    return "\n".join(names)


def decode_names(text: str) -> list[str]:
    """Return the names in the text of one attribute."""
    return text.split("\n")
