"""What a replay will take, from a few timed steps, and what it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from replay import tracincp
from replay.arguments import Window, window
from replay.run import Replay
from replay.task import example_ids
from tracer.records import ID

_STEPS = 4  # timed beyond the first, which also proves the gradients
_EXAMPLES = 64  # training examples timed at a checkpoint


@dataclass(frozen=True)
class Cost:
    """Time and memory.

    Attributes:
        seconds: Duration.
        peak_bytes: The most memory that the process held, on its device and beside it.
    """

    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{_duration(self.seconds)}, peak memory {self.peak_bytes / 1e9:.2f} GB"


def estimate(
    run: Replay,
    test_ids: Sequence[ID],
    *,
    methods: Sequence[str],
    checkpoints: int | str | Sequence[int] = 10,
    steps: Window | None = None,
    ideal_tolerance: float | None = 1e-3,
    allow_mismatch: bool = False,
) -> Cost:
    """Return what ``run.influence`` with the same arguments will take, about.

    The first steps of the window and a few training examples at the first checkpoint are
    computed. Early steps refine ``ideal`` more often than late ones; a window of momentum or Adam
    that does not fit into the memory budget is replayed up to twice, which is not seen here.
    """
    chosen = window(steps, len(run.log))
    columns = example_ids(run.task.train)
    split = [name for name in methods if name != "tracincp"]
    seconds = 0.0

    def few(count: int) -> Callable[[], object]:
        return lambda: run.influence(
            test_ids,
            methods=split,
            steps=slice(chosen.start, chosen.start + count),
            train_ids=columns[:1],
            ideal_tolerance=ideal_tolerance,
            allow_mismatch=allow_mismatch,
            progress=False,
        )

    def heuristic(count: int) -> Callable[[], object]:
        return lambda: run.influence(
            test_ids,
            methods=("tracincp",),
            checkpoints=[0],
            train_ids=columns[:count],
            progress=False,
        )

    if split:
        more = min(_STEPS + 1, len(chosen))
        seconds += _extrapolated(few, 1, more, len(chosen))
    if "tracincp" in methods:
        number = len(tracincp.choose(run.log, checkpoints))
        more = min(_EXAMPLES + 1, len(columns))
        seconds += number * _extrapolated(heuristic, 1, more, len(columns))
    tables = 8 * len(test_ids) * (len(methods) * len(columns) + 12 * len(split) * len(chosen))
    return Cost(seconds, peak_bytes() + tables)


def _extrapolated(
    job: Callable[[int], Callable[[], object]], one: int, more: int, all_: int
) -> float:
    """Return the time of a job of one size from two smaller ones, after one to warm up."""
    job(one)()
    first = _timed(job(one))
    if more <= one:
        return first
    each = max(0.0, _timed(job(more)) - first) / (more - one)
    return first + each * (all_ - one)


def _timed(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        resident += torch.cuda.max_memory_allocated()
    return int(resident)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
