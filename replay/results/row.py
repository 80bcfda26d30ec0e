"""One row of scores, prepared once for all comparisons with other rows.

What takes long is sorting: each row is sorted once, whatever it is compared with, and its ranks
are small integers, which sort again in linear time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Row = NDArray[np.float64]


class RankedRow:
    """The scores of N training examples on one test example.

    Args:
        scores: Float64 ``(N,)``.
        k: How many are strongest.
    """

    def __init__(self, scores: Row, k: int) -> None:
        self._scores, self._k = scores, k
        self._finite = bool(np.isfinite(scores).all())
        values, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
        self._places = places.astype(np.min_scalar_type(len(values)))
        self._ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # ties share their mean rank
        self._varies = len(values) > 1
        self._first, self._last = _smallest(-scores, k), _smallest(scores, k)

    @np.errstate(invalid="ignore", over="ignore")  # of rows that are not finite, nothing is kept
    def metrics(self, other: RankedRow) -> dict[str, float]:
        """Return every metric of this row, x, with another one, y; NaN where undefined."""
        x, y = self._scores, other._scores
        both = (x != 0) & (y != 0)
        compares, varies = self._finite and other._finite, self._varies and other._varies
        top = self._k if self._k < len(x) else math.nan  # all of them are the same ones always
        found = {
            **self._correlations(other),
            "kendall": self._kendall(other) if varies else math.nan,
            "top_proponents": len(self._first & other._first) / top,
            "top_opponents": len(self._last & other._last) / top,
            "sign": float(np.mean((x[both] > 0) == (y[both] > 0))) if both.any() else math.nan,
            "slope": _slope(x, y) if x.any() else math.nan,
            "total_ratio": _ratio(x, y),
        }
        return found if compares else dict.fromkeys(found, math.nan)

    def errors(self, other: RankedRow) -> dict[str, float]:
        """Return how far another row, y, is from this one, x; NaN where undefined.

        ``relative_error`` is ``‖y − x‖ / ‖x‖``; ``scaled_error`` the same once y is multiplied by
        the best common factor: what is left of it is no question of scale.
        """
        x, y = self._scores, other._scores
        size, factor = float(np.linalg.norm(x)), _slope(y, x) if y.any() else 0.0
        found = {
            **self._correlations(other),
            "relative_error": float(np.linalg.norm(y - x)) / size if size else math.nan,
            "scaled_error": float(np.linalg.norm(factor * y - x)) / size if size else math.nan,
            "total_ratio": _ratio(x, y),
        }
        compares = self._finite and other._finite
        return found if compares else dict.fromkeys(found, math.nan)

    def _correlations(self, other: RankedRow) -> dict[str, float]:
        """Return Pearson's and Spearman's correlation; NaN where one of the two is constant."""
        varies = self._varies and other._varies
        return {
            "pearson": _correlation(self._scores, other._scores) if varies else math.nan,
            "spearman": _correlation(self._ranks, other._ranks) if varies else math.nan,
        }

    def _kendall(self, other: RankedRow) -> float:
        """Return Kendall's tau-b; of ranks in order, since sorted ones sort soonest."""
        order = np.argsort(other._places, kind="stable")
        x, y = self._places[order], other._places[order]
        return float(stats.kendalltau(x, y).statistic)


def _correlation(x: Row, y: Row) -> float:
    """Return Pearson's correlation of rows that are not constant."""
    u, v = (row / np.abs(row).max() for row in (x - x.mean(), y - y.mean()))
    return float(np.clip(u @ v / math.sqrt((u @ u) * (v @ v)), -1, 1))


def _ratio(x: Row, y: Row) -> float:
    """Return the ratio of two rows' totals, of y to x."""
    return float(y.sum() / x.sum()) if x.sum() else math.nan


def _slope(x: Row, y: Row) -> float:
    """Return the slope through the origin of a row that is not all 0."""
    size = np.abs(x).max()
    unit = x / size  # squares of small scores would be 0
    return float(unit @ y / (unit @ unit) / size)


def _smallest(scores: Row, k: int) -> set[int]:
    """Return the places of the k smallest scores, the first ones of equal scores."""
    kth = np.partition(scores, k - 1)[k - 1]
    below, equal = np.flatnonzero(scores < kth), np.flatnonzero(scores == kth)
    return {*below.tolist(), *equal[: k - len(below)].tolist()}
