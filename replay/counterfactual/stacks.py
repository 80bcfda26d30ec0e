"""Which counterfactual runs are taken together: they come out as each alone would, to the last bit.

Products of stacked matrices may be rounded otherwise than those of single ones. So every stack
begins with some steps without a change, which must lead each lane to the parameters of the run, and
has a lane in which nothing is changed, which must be the run at every step; each lane must be that
one up to where it leaves it. At the first bit that differs, runs are taken one by one. Who is in
which stack depends on the question alone, so that a job that was killed, or one on several
processes, has the same stacks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import numpy as np

from replay.counterfactual.change import Change
from replay.counterfactual.lanes import Lanes
from replay.counterfactual.runs import Runs, Table
from tracer.errors import NonFiniteError
from tracer.log.read.run_log import RunLog
from tracer.rules.table import rule_of

SMALL = 10_000  # parameters of a model; products of larger ones take most of the time
MOST, FEWEST = 64, 32  # runs of a stack; fewer are not three times as fast
_TRIED = 3  # steps without a change

Values = list[Table]


def stacked(log: RunLog, starts: Sequence[int]) -> list[list[int]]:
    """Return the numbers of runs that are to be taken together, in the order of their starts.

    Args:
        log: The run.
        starts: Of each run, the first step that it changes.
    """
    order = sorted(range(len(starts)), key=starts.__getitem__)
    changed = [n for n in order if starts[n] < len(log)]
    small = sum(shape.numel() for shape, _ in log.parameter_layout.values()) < SMALL
    rule = rule_of(str(log.metadata["update_rule"]), {}, log.ever_used)
    if not small or rule is None or not rule.smooth or len(changed) < FEWEST:
        return [[n] for n in order]
    together = np.array_split(changed, -(-len(changed) // MOST))
    return [some.tolist() for some in together] + [[n] for n in order if starts[n] == len(log)]


def taken(runs: Runs, changes: Sequence[Change]) -> Values:
    """Return the values of some runs, taken together if there are several and they can be."""
    found = _together(runs, changes) if len(changes) > 1 else None
    return [runs.values(change) for change in changes] if found is None else found


def seconds(runs: Runs, changes: Sequence[Change], most: int) -> float | None:
    """Return what a step of a stack takes, from some; None if runs are taken one by one."""
    lanes, first = runs.lanes(), min(runs.start(change) for change in changes)
    if lanes is None or not _tried(runs, lanes, len(changes) + 1, first):
        return None
    lanes.begin(*runs.reached(first), [*changes, Change({})])
    steps, began = range(first, min(first + most, runs.total)), time.perf_counter()
    for t in steps:
        lanes.advance(runs.step(t))
    return (time.perf_counter() - began) / len(steps)


def _together(runs: Runs, changes: Sequence[Change]) -> Values | None:
    """Take a stack; None if a lane comes out otherwise than alone.

    Args:
        runs: Takes runs one by one.
        changes: In the order of their starts.
    """
    lanes, every = runs.lanes(), [*changes, Change({})]
    starts = [runs.start(change) for change in every]
    first = min(starts)
    if lanes is None or not _tried(runs, lanes, len(every), first):
        return None
    lanes.begin(*runs.reached(first), every)
    found = [runs.baseline.copy() for _ in every]
    for t in range(first, runs.total):
        lanes.advance(runs.step(t))
        left = sum(start <= t for start in starts)
        if not (lanes.alike(left) and runs.is_run(lanes.state(-1), t + 1)):
            return None
        for lane in range(len(every) if t + 1 in runs.marks else 0):
            found[lane][runs.marks.index(t + 1)] = _values(runs, lanes, lane)
        for _ in range(left):
            runs.advance()
    return found[:-1]


def _tried(runs: Runs, lanes: Lanes, count: int, first: int) -> bool:
    """Return whether steps without a change lead every lane to what the run came to."""
    stop = min(first + _TRIED, runs.total)
    step, point = runs.reached(first)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where vmap goes from lane to lane
            lanes.begin(step, point, [Change({})] * count)
            for t in range(first, stop):
                lanes.advance(runs.step(t))
    except Exception:  # a model that vmap cannot do; what else is wrong, a run alone will say
        return False
    return all(runs.is_run(lanes.state(lane), stop) for lane in range(count))


def _values(runs: Runs, lanes: Lanes, lane: int) -> Table:
    try:
        if lanes.alive[lane]:
            return runs.measure(lanes.state(lane), "a counterfactual run")
    except NonFiniteError:
        lanes.alive[lane] = False  # as a run alone ends there
    return np.full_like(runs.baseline[0], np.nan)
