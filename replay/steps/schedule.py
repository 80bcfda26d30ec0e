"""A window that memory does not hold is cut into pieces, which are recorded again one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What memory holds at once.

    Attributes:
        states: How many states of the optimizer, between pieces.
        steps: How many recorded steps.
        keeps: Whether with their examples' gradients, which else are computed when they are needed.
    """

    states: int
    steps: int
    keeps: bool


@dataclass(frozen=True)
class Outlook:
    """What recording a window ahead of the walk backwards takes.

    Attributes:
        recordings: How many steps are recorded without their examples' gradients, in all.
        nbytes: What is held at once, about.
    """

    recordings: int
    nbytes: int


def room_for(budget: int, size: int, examples: float) -> Room:
    """Return what memory holds; half of it is for states.

    Args:
        budget: Bytes.
        size: Of a recorded step, and of a state.
        examples: Of the gradients of a step's examples; infinite if they cannot be stored.
    """
    states = max(2, budget // 2 // size)
    steps = int(budget / 2 // (size + examples))
    return Room(states, steps or states, keeps=steps > 0)


def cuts(start: int, stop: int, room: Room) -> list[int]:
    """Return where pieces of a window begin; one if there is room for all of it."""
    pieces = min(room.states, math.ceil((stop - start) / room.steps))
    return list(range(start, stop, math.ceil((stop - start) / pieces)))


def outlook(count: int, size: int, examples: float, room: Room) -> Outlook:
    """Return what a window takes of which all does not fit.

    Args:
        count: Its steps.
        size: Bytes of a recorded one, and of a state.
        examples: Bytes of its examples' gradients.
        room: What memory holds.
    """
    each = size + examples if room.keeps else size
    held = min(count, room.steps) * each + len(cuts(0, count, room)) * size
    return Outlook(_recordings(count, room), int(held))


def _recordings(count: int, room: Room) -> int:
    starts = cuts(0, count, room)
    if len(starts) == 1:
        return 0 if room.keeps else count
    lengths = (b - a for a, b in zip(starts, [*starts[1:], count], strict=True))
    return starts[-1] + sum(_recordings(length, room) for length in lengths)
