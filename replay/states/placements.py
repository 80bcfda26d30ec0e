"""Where checkpoints may stand: so many states of a run, chosen in one of several ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from replay import names
from replay.states.checkpoints import epoch_ends, spaced
from tracer.log.read.run_log import RunLog

_PART = 4  # early and late: the first and the last quarter of the run

Placement = Callable[[RunLog, int], list[int]]


def even(log: RunLog, count: int) -> list[int]:
    """Return the states that ``checkpoints=count`` means."""
    return spaced(count, len(log))


def ends(log: RunLog, count: int) -> list[int]:
    """Return so many of the ends of epochs, evenly."""
    found = epoch_ends(log, 'placements="epochs"')
    return [found[k - 1] for k in spaced(min(count, len(found)), len(found))]


def early(log: RunLog, count: int) -> list[int]:
    """Return states of the first quarter of the run, evenly."""
    return spaced(count, max(1, len(log) // _PART))


def late(log: RunLog, count: int) -> list[int]:
    """Return states of the last quarter of the run, evenly."""
    length = max(1, len(log) // _PART)
    return [len(log) - length + k for k in spaced(count, length)]


def rate(log: RunLog, count: int) -> list[int]:
    """Return the states that cut the sum of all learning rates into equal parts, as near as can be.

    Of a warm-up or a decay they stand where the learning rate is large.
    """
    rates = [sum(log.learning_rate(t)) for t in range(len(log))]
    sums = np.concatenate([[0.0], np.cumsum(rates)])
    wanted = sums[-1] * np.arange(1, count + 1) / count
    return sorted({int(np.abs(sums - target).argmin()) for target in wanted})


_WAYS: tuple[Placement, ...] = (even, ends, early, late, rate)
PLACEMENTS: dict[str, Placement] = dict(zip(names.PLACEMENTS, _WAYS, strict=True))


def possible(log: RunLog) -> list[str]:
    """Return the placements that a run has: epochs only where it recorded them."""
    known = all(step.epoch is not None for step in log.steps())
    return [name for name in PLACEMENTS if known or PLACEMENTS[name] is not ends]
