"""What the steps of a log have together: read column by column, thousands of steps at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from tracer.log import schema
from tracer.log.parts.batch_ids import IDS, BatchIds
from tracer.log.parts.hyperparameters import HYPER
from tracer.log.parts.micro_batches import MICRO
from tracer.log.parts.source import NONE
from tracer.log.read.run_log import RunLog

_BLOCK = 1 << 15  # steps


@dataclass
class Summary:
    """What the steps of a log have together.

    Attributes:
        examples: Numbers of the different IDs.
        epochs: The different epochs that were set.
        rates: The different learning rates, those that are finite.
        visits: How many IDs there are, with repeats.
        forwards: Forward passes whose random state is on file.
        recorded: Batches that are on file.
    """

    examples: set[int] = field(default_factory=set)
    epochs: set[int] = field(default_factory=set)
    rates: set[float] = field(default_factory=set)
    visits: int = 0
    forwards: int = 0
    recorded: int = 0

    def add(self, steps: Steps) -> None:
        """Add some steps."""
        micro, hyper = steps.rows(MICRO, "micro", "micro_count"), steps.rows(HYPER, *_HYPER)
        steps.check(MICRO, "micro_crc", steps.pieces(micro, "micro_count"))
        steps.check(HYPER, "hyper_crc", steps.pieces(hyper, "groups"))
        ids = steps.ids(micro)
        self.examples.update(_different(ids))
        self.epochs.update(set(np.unique(steps.meta["epoch"]).tolist()) - {NONE})
        rates = np.unique(hyper[:, steps.log.facts.columns("lr")])
        self.rates.update(rates[np.isfinite(rates)].tolist())
        self.visits += len(ids)
        self.forwards += int((micro["rng"] != NONE).sum())
        self.recorded += int((micro["batch"] != NONE).sum())


_HYPER = "hyper", "groups"


def blocks(log: RunLog) -> int:
    """Return how often ``summary`` advances."""
    return -(-len(log) // _BLOCK)


def summary(log: RunLog, advance: Callable[[], None] = lambda: None) -> Summary:
    """Return what the steps have together; every row that it is made of matches its checksum.

    Args:
        log: The log.
        advance: Called after some thousand steps.

    Raises:
        LogError: A row does not match its checksum; names step and table.
    """
    found, texts = Summary(), BatchIds(log.facts)
    for start in range(0, len(log), _BLOCK):
        found.add(Steps(log, start, min(_BLOCK, len(log) - start), texts))
        advance()
    return found


def batch_sizes(log: RunLog, steps: range) -> NDArray[np.int64]:
    """Return how many examples and how many micro-batches each of some steps has, ``(T, 2)``.

    Raises:
        LogError: A row does not match its checksum; names step and table.
    """
    texts = BatchIds(log.facts)
    found = [
        Steps(log, some[0], len(some), texts).meta[["count", "micro_count"]]
        for some in (steps[k : k + _BLOCK] for k in range(0, len(steps), _BLOCK))
    ]
    return structured_to_unstructured(np.concatenate(found), np.int64)


class Steps:
    """Rows of consecutive steps.

    Args:
        log: The log.
        start: The first step.
        count: How many.
        texts: Knows the string IDs.

    Attributes:
        log: The log.
        meta: The meta rows.
    """

    def __init__(self, log: RunLog, start: int, count: int, texts: BatchIds) -> None:
        self.log, self._start, self._texts = log, start, texts
        self._where = f"steps {start} to {start + count - 1}"
        self.meta = log.tables.rows(schema.META, start, count, self._where)
        whole = self.meta.copy()
        whole["record_crc"] = 0
        self.check(schema.META, "record_crc", _cut(whole, np.ones(count, np.int64)))
        self._require(schema.META, self.meta["step"] == np.arange(start, start + count))

    def rows(self, name: str, first: str, count: str) -> NDArray[Any]:
        """Return a table's rows, which lie one behind the other.

        Args:
            name: The table.
            first: The column of the meta row that says where a step's begin.
            count: The one that says how many they are.
        """
        starts, ends = self.meta[first], self.meta[first] + self.meta[count]
        self._require(name, (self.meta[count] >= 0) & (starts == np.r_[starts[:1], ends[:-1]]))
        return self.log.tables.rows(name, starts[0], ends[-1] - starts[0], self._where)

    def pieces(self, rows: NDArray[Any], count: str) -> Iterator[memoryview]:
        """Return the bytes of each step's rows."""
        return _cut(rows, self.meta[count])

    def check(self, name: str, column: str, pieces: Iterator[memoryview]) -> None:
        """Raise LogError unless the bytes of each step match their checksum."""
        self._require(name, np.array([*map(zlib.crc32, pieces)]) == self.meta[column])

    def ids(self, micro: NDArray[Any]) -> NDArray[np.int64]:
        """Return the numbers of the IDs, strings compared, too."""
        ids = self.rows(IDS, "ids", "count")
        if not self.log.tables.strings:
            self.check(IDS, "ids_crc", self.pieces(ids, "count"))
            return ids
        batches = iter(self._batches(ids, micro["count"]))
        sums = [self._sum(batches, count) for count in self.meta["micro_count"].tolist()]
        self._require(IDS, np.array(sums) == self.meta["ids_crc"])
        return ids

    def _batches(self, ids: NDArray[np.int64], counts: NDArray[Any]) -> list[NDArray[np.int64]]:
        """Return the IDs of each micro-batch."""
        if (counts < 0).any() or counts.sum() != len(ids):
            raise self.log.tables.broken(self._start, IDS)
        return np.split(ids, np.cumsum(counts)[:-1])

    def _sum(self, batches: Iterator[NDArray[np.int64]], count: int) -> int:
        """Return the checksum of a step's IDs with their texts."""
        found = 0
        for _ in range(count):
            found = self._texts.checksum(self.log.tables, next(batches).tolist(), found)
        return found

    def _require(self, name: str, right: NDArray[np.bool_]) -> None:
        if not right.all():
            raise self.log.tables.broken(self._start + int(np.argmin(right)), name)


def _cut(rows: NDArray[Any], counts: NDArray[Any]) -> Iterator[memoryview]:
    """Return the bytes of so many rows after the other."""
    data = memoryview(rows.tobytes())
    width = len(data) // max(1, len(rows))
    ends = (np.cumsum(counts) * width).tolist()
    return map(data.__getitem__, map(slice, [0, *ends[:-1]], ends))  # no loop in Python


def _different(numbers: NDArray[np.int64]) -> list[int]:
    """Return the different ones; positions in a data set are counted, which is faster."""
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if high - low > len(numbers):
        return list(np.unique(numbers).tolist())
    found = np.flatnonzero(np.bincount(numbers - low)) + low
    return list(found.tolist())
