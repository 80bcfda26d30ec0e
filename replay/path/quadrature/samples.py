"""What is known of a step, at other points for each test example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """What m test examples know of a step, at N points each; the last may be repeated.

    Attributes:
        u: The points, from 0 to 1, ascending, ``(m, N)``.
        values: ``φ`` there, ``(m, N)``.
        slopes: Products of the gradients there with the step, ``−dφ/du``, ``(m, N)``.
        shares: Their products with the gradients of the step's b examples, ``(m, N, b)``.
    """

    u: Array
    values: Array
    slopes: Array
    shares: Array

    @property
    def widths(self) -> Array:
        """Lengths of the intervals; 0 where a point is repeated, ``(m, N - 1)``."""
        return np.diff(self.u)

    @property
    def drops(self) -> Array:
        """By how much ``φ`` falls in each interval, ``(m, N - 1)``."""
        return -np.diff(self.values)

    @property
    def off(self) -> Array:
        """By how much each drop is more than its two ends predict, ``(m, N - 1)``."""
        return self.drops - self.widths * (self.slopes[:, :-1] + self.slopes[:, 1:]) / 2

    @property
    def inside(self) -> NDArray[np.int64]:
        """How many points lie between the ends, ``(m,)``."""
        found: NDArray[np.int64] = ((self.u > 0) & (self.u < 1)).sum(1)
        return found

    def of(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return those of some test examples."""
        return Samples(*(table[chosen] for table in self._tables))

    def at(self, places: NDArray[np.intp]) -> Samples:
        """Return some of the points."""
        return Samples(*(table[:, places] for table in self._tables))

    def row(self, index: int) -> Samples:
        """Return those of one test example, no point repeated."""
        count = 1 + (self.u[index] < 1).sum()
        return Samples(*(table[index : index + 1, :count] for table in self._tables))

    def with_more(self, more: Samples) -> Samples:
        """Return both, in ascending order.

        >>> ends = Samples(*[np.array([[0.0, 1.0]])] * 3, np.array([[[2.0], [4.0]]]))
        >>> half = Samples(*[np.array([[0.5]])] * 3, np.array([[[3.0]]]))
        >>> ends.with_more(half).shares.tolist()
        [[[2.0], [3.0], [4.0]]]
        """
        both = [np.concatenate(t, axis=1) for t in zip(self._tables, more._tables, strict=True)]
        longest = 1 + (both[0] < 1).sum(1).max()
        order = np.argsort(both[0], axis=1, kind="stable")[:, :longest]
        rows = np.arange(len(order))[:, None]
        return Samples(*(table[rows, order] for table in both))

    @staticmethod
    def joined(parts: Sequence[Samples]) -> Samples:
        """Return all test examples of several, the last points repeated where one has fewer."""
        longest = max(part.u.shape[1] for part in parts)
        index = [np.minimum(np.arange(longest), part.u.shape[1] - 1) for part in parts]
        tables = zip(*(part._tables for part in parts), strict=True)
        return Samples(
            *(np.concatenate([t[:, k] for t, k in zip(one, index, strict=True)]) for one in tables)
        )

    @property
    def _tables(self) -> list[Array]:
        return [getattr(self, field.name) for field in fields(self)]


def norm(shares: Array) -> Array:
    """Return the norm of splits, over their last dimension."""
    found: Array = np.sqrt(np.square(shares).sum(-1))
    return found


def relative(part: Array, whole: Array) -> Array:
    """Return how large a part is, 0 of nothing."""
    nothing = part == 0
    with np.errstate(divide="ignore"):
        found: Array = np.where(nothing, 0.0, part / np.where(nothing, 1.0, whole))
    return found
