"""A window that memory does not hold is cut into pieces, which are recorded again one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What recording a window ahead of the walk backwards takes.

    Attributes:
        recordings: How many steps are recorded without their examples' gradients, in all.
        nbytes: What is held at once, about.
    """

    recordings: int
    nbytes: int


def room_for(budget: int, size: int) -> int:
    """Return how many recorded steps of so many bytes, or states between them, are held at once."""
    return max(2, budget // 2 // size)


def cuts(start: int, stop: int, room: int) -> list[int]:
    """Return where pieces of a window begin; one if there is room for all of it."""
    pieces = min(room, math.ceil((stop - start) / room))
    return list(range(start, stop, math.ceil((stop - start) / pieces)))


def recordings(count: int, room: int) -> int:
    """Return how many steps are recorded for a window of ``count``."""
    starts = cuts(0, count, room)
    if len(starts) == 1:
        return count
    lengths = (b - a for a, b in zip(starts, [*starts[1:], count], strict=True))
    return starts[-1] + sum(recordings(length, room) for length in lengths)


def outlook(count: int, size: int, room: int) -> Outlook:
    """Return what a window takes of which all does not fit.

    Args:
        count: Its steps.
        size: Bytes of a recorded one, and of a state between two.
        room: See ``room_for``.
    """
    held = min(count, room) + len(cuts(0, count, room))
    return Outlook(recordings(count, room), held * size)
