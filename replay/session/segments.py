"""Segments of a run that processes take, and what is left of them.

Where the optimizer remembers, a step's bits depend on where its segment begins: moments are read
there, and computed from there on. Those segments do not depend on how many processes there are, and
whoever takes one begins it at its first step, whatever of it is on file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from itertools import pairwise

from replay.evaluate.state import States
from replay.session.bound_run import BoundRun

_SEGMENTS = 8  # for each process at most
_FEW, _MANY = 16, 256  # for any number of processes, at least and at most
_LONG = 16  # steps in each of more


def segments(states: States, steps: range, processes: int) -> list[range]:
    """Return segments of independent steps: several for each process, as they are quick.

    They begin where a state costs no more than reading it. Test values there are computed on both
    sides, so that a segment is not short if there need not be as many.
    """
    count = min(_SEGMENTS * processes, len(steps) // _LONG)
    count = max(count, min(len(steps), processes))
    return _cut(steps, {states.nearest(t) for t in _even(steps, count)})


def whole_segments(run: BoundRun, steps: range) -> list[range]:
    """Return the segments of some steps, the same for any number of processes.

    They begin where a state costs no more than reading it: where the optimizer remembers, at full
    states. If there is none, the steps are halved, and the second half's process takes the first
    half again by whole gradients.
    """
    count = min(len(steps), _MANY, max(_FEW, len(steps) // _LONG))
    found = _cut(steps, {_nearest(run, t) for t in _even(steps, count)})
    if len(found) == 1 and run.remembers and len(steps) > 2 * _LONG:
        return _cut(steps, {steps[len(steps) // 2]})
    return found


def _even(steps: range, count: int) -> list[int]:
    return [steps.start + round(k * len(steps) / count) for k in range(1, count)]


def _cut(steps: range, starts: Set[int]) -> list[range]:
    inside = sorted(starts & {*steps[1:]})
    return [range(a, b) for a, b in pairwise([steps.start, *inside, steps.stop])]


def _nearest(run: BoundRun, t: int) -> int:
    if not run.remembers:
        return run.states.nearest(t)
    return min(run.states.stored, key=lambda k: abs(k - t), default=t)


def left(run: BoundRun, segment: range, missing: Sequence[int]) -> list[range]:
    """Return the steps of a segment that are to be walked through, to find what is missing of it.

    Args:
        run: The run.
        segment: One of ``whole_segments``.
        missing: Steps of it, in order.
    """
    if run.remembers:
        return [range(segment.start, missing[-1] + 1)] if missing else []
    return runs(missing)


def runs(steps: Iterable[int]) -> list[range]:
    """Return runs of consecutive steps."""
    found: list[range] = []
    for t in steps:
        if found and found[-1].stop == t:
            found[-1] = range(found[-1].start, t + 1)
        else:
            found.append(range(t, t + 1))
    return found
