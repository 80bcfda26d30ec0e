"""Cuts a window that memory does not hold into segments, which are replayed again one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

Visit = tuple[int, bool]  # a step, and whether with its examples' gradients


@dataclass(frozen=True)
class Capacity:
    """What memory holds at once.

    Attributes:
        states: How many states of the optimizer, one before each segment.
        steps: How many replayed steps.
        keeps: Whether with their examples' gradients, which else are computed when they are needed.
    """

    states: int
    steps: int
    keeps: bool


@dataclass(frozen=True)
class Estimate:
    """What replaying a window ahead of the walk backwards takes.

    Attributes:
        replays: How many steps are replayed without their examples' gradients, in all.
        nbytes: What is held at once, about.
    """

    replays: int
    nbytes: int


def capacity_of(budget: int, size: int, examples: float) -> Capacity:
    """Return what a budget holds; half of it is for states.

    Args:
        budget: Bytes.
        size: Bytes of a replayed step, and of a state.
        examples: Bytes of its examples' gradients; infinite if they cannot be stored.
    """
    states = max(2, budget // 2 // size)
    steps = int(budget / 2 // (size + examples))
    return Capacity(states, steps or states, keeps=steps > 0)


def segment_starts(start: int, stop: int, capacity: Capacity) -> list[int]:
    """Return where the segments of a window begin; one if memory holds all of it."""
    count = min(capacity.states, math.ceil((stop - start) / capacity.steps))
    return list(range(start, stop, math.ceil((stop - start) / count)))


def visits(start: int, stop: int, capacity: Capacity) -> Iterator[Visit]:
    """Yield the steps that are replayed while a window is walked backwards, in that order."""
    starts = segment_starts(start, stop, capacity)
    if len(starts) == 1:
        yield from ((t, capacity.keeps) for t in range(start, stop))
        if not capacity.keeps:
            yield from ((t, True) for t in reversed(range(start, stop)))
        return
    yield from ((t, False) for t in range(start, starts[-1]))
    while starts:
        begin = starts.pop()
        yield from visits(begin, stop, capacity)
        stop = begin


def estimate(count: int, size: int, examples: float, capacity: Capacity) -> Estimate:
    """Return what a window takes of which all does not fit.

    Args:
        count: Its steps.
        size: Bytes of a replayed one, and of a state.
        examples: Bytes of its examples' gradients.
        capacity: What memory holds.
    """
    each = size + examples if capacity.keeps else size
    segments = len(segment_starts(0, count, capacity))
    held = min(count, capacity.steps) * each + segments * size
    return Estimate(_replays(count, capacity), int(held))


def _replays(count: int, capacity: Capacity) -> int:
    starts = segment_starts(0, count, capacity)
    if len(starts) == 1:
        return 0 if capacity.keeps else count
    lengths = (b - a for a, b in zip(starts, [*starts[1:], count], strict=True))
    return starts[-1] + sum(_replays(length, capacity) for length in lengths)
