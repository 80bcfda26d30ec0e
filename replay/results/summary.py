"""A result in a few lines, and how numbers are written for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def summary(title: str, rows: Mapping[str, object]) -> str:
    """Return a title with named lines below it; empty ones are left out."""
    width = max(map(len, rows), default=0)
    lines = (f"  {name:{width}}  {text}" for name, text in rows.items() if text)
    return "\n".join([title, *lines])


def said_of_checkpoints(attributes: Mapping[str, object]) -> str:
    """Return how many states were summed over, and what was asked for if that is not the same."""
    used = str(len(str(attributes.get("checkpoints", "")).split()))
    asked = str(attributes.get("checkpoints_asked", "")) or used
    return used if asked == used else f"{used} ({asked} asked for)"


def said_of_tolerance(attributes: Mapping[str, object], beyond: NDArray[np.bool_]) -> str:
    """Return the tolerance that was asked for, and how many splits may not meet it."""
    if not beyond.any():
        return ""
    asked = attributes["ideal_tolerance"]
    return f"{asked}; {int(beyond.sum())} of {beyond.size} splits may be off by more"


def number(value: float, digits: int = 4) -> str:
    """Return a number in so many significant digits."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:.{digits - 1}e}"


def counted(ids: Sequence[object]) -> str:
    """Return over which test examples a number is a mean or median."""
    return f"test example {ids[0]}" if len(ids) == 1 else f"{len(ids)} test examples"


def said_of_threads(facts: Mapping[str, object]) -> str:
    """Return ", 1 thread (why)", of a result's attributes; earlier versions did not know.

    >>> said_of_threads({"threads": 1, "threads_chosen": "as asked for"})
    ', 1 thread (as asked for)'
    """
    number = facts.get("threads")
    if number is None:
        return ""
    return f", {counted_threads(int(str(number)))} ({facts.get('threads_chosen')})"


def counted_threads(number: int) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{number} thread{'' if number == 1 else 's'}"
