"""States kept in memory while a run is taken again, for whoever walks it backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from replay.states.execution import Point

_LEAST = 8  # states that memory holds whatever the budget is


class Points(dict[int, Point]):
    """States by step, as many as a budget of bytes holds."""

    def __init__(self, budget: int) -> None:
        super().__init__()
        self._budget = budget

    def keep(self, t: int, point: Point) -> None:
        """Keep a state; of too many, the latest goes: a walk backwards has passed it."""
        self[t] = point
        most = max(_LEAST, self._budget // max(1, _bytes(point)))
        while len(self) > most:
            del self[max(self)]

    def forget_from(self, t: int) -> None:
        """Forget the states from ``t`` on."""
        for k in [k for k in self if k >= t]:
            del self[k]


def halves(start: int, stop: int) -> list[int]:
    """Return where states are kept on the way to ``stop``: half of what is left, again and again.

    A walk backwards over n steps then takes about n log n steps, and log n states.

    >>> halves(0, 16)
    [8, 12, 14, 15, 16]
    """
    found = []
    while start < stop:
        start += -(-(stop - start) // 2)
        found.append(start)
    return found


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the Euclidean distance of two states' parameters, in float64."""
    gaps = [torch.linalg.vector_norm(left[n].double() - right[n].double()) for n in left]
    return float(torch.linalg.vector_norm(torch.stack(gaps))) if gaps else 0.0


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
