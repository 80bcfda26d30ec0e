"""How well two score tables agree, test example by test example.

For each row (one test example, N training examples) of two tables x and y:

- pearson, spearman, kendall: correlations (Kendall's tau-b), by ``scipy.stats``;
- top-k proponents and opponents: share of x's k largest (smallest) that are among y's;
- sign: share of examples with the same sign, among those where neither score is 0;
- slope: least squares through the origin, ``⟨x, y⟩ / ⟨x, x⟩``;
- total_ratio: ``Σ y / Σ x``, which shows a wrong scale that correlations hide.

NaN where a row is constant or a denominator is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from replay.arguments import listed, one_of
from tracer.errors import InputError, shown

METRICS = (
    "pearson",
    "spearman",
    "kendall",
    "top_proponents",
    "top_opponents",
    "sign",
    "slope",
    "total_ratio",
)
_ONE_WAY = ("slope", "total_ratio")  # of y against x is not of x against y
Row = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One metric of one pair of methods over the test examples.

    Attributes:
        pair: The two methods, x then y.
        metric: One of ``METRICS``.
        values: One for each test example, float64 ``(m,)``; NaN where undefined.
    """

    pair: tuple[str, str]
    metric: str
    values: Row

    def quantile(self, q: float) -> float:
        """Return a quantile over the test examples where the metric is defined."""
        defined = self.values[~np.isnan(self.values)]
        return float(np.quantile(defined, q)) if len(defined) else float("nan")

    @property
    def median(self) -> float:
        """The median over test examples."""
        return self.quantile(0.5)


@dataclass(frozen=True)
class Agreement:
    """Comparisons of every pair of methods.

    Attributes:
        rows: One for each pair and metric.
        k: Size of the top-k overlaps.
    """

    rows: list[Comparison]
    k: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of methods, in order."""
        return list(dict.fromkeys(row.pair for row in self.rows))

    def get(self, pair: tuple[str, str], metric: str) -> Comparison:
        """Return one comparison.

        Args:
            pair: The two methods; in either order, where the metric is the same both ways.
            metric: One of ``METRICS``.

        Raises:
            InputError: There is no such comparison.
        """
        names = tuple(map(str, listed(pair) or ()))
        if names not in {*self.pairs, *(pair[::-1] for pair in self.pairs)}:
            some = " or ".join(f'get({one}, "{METRICS[0]}")' for one in self.pairs)
            raise InputError(
                f"expected a pair of methods and a metric, {some or 'of a result with several'}; "
                f"found the pair {shown(pair)}."
            )
        one_of("metric", metric, METRICS)
        rows = {row.pair: row for row in self.rows if row.metric == metric}
        if names in rows:
            return rows[names]
        if metric in _ONE_WAY:
            raise InputError(
                f"{metric} differs for {names[0]} against {names[1]}; what was compared is "
                f"{names[::-1]}."
            )
        return replace(rows[names[::-1]], pair=names)


def compare(scores: Mapping[str, Row], *, k: int) -> Agreement:
    """Compare every pair of methods.

    Args:
        scores: By method, float64 ``(m, N)``.
        k: Size of the top-k overlaps; at most N.
    """
    rows = []
    for first, second in combinations(scores, 2):
        found = [
            _metrics(x, y, min(k, len(x)))
            for x, y in zip(scores[first], scores[second], strict=True)
        ]
        for metric in METRICS:
            values = np.array([one[metric] for one in found])
            rows.append(Comparison((first, second), metric, values))
    return Agreement(rows, k)


def totals_hold(x: Row, y: Row, *, share: float = 0.1) -> NDArray[np.bool_]:
    """Return for which test examples the ratio of two tables' totals says something, ``(m,)``.

    It says nothing where the scores of either cancel: where their sum is below ``share`` of the
    sum of their absolute values.
    """
    holds: list[NDArray[np.bool_]] = [
        np.abs(table.sum(1)) >= share * np.abs(table).sum(1) for table in (x, y)
    ]
    return holds[0] & holds[1]


def _metrics(x: Row, y: Row, k: int) -> dict[str, float]:
    both = (x != 0) & (y != 0)
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    nan = float("nan")
    return {
        "pearson": nan if constant else float(stats.pearsonr(x, y).statistic),
        "spearman": nan if constant else float(stats.spearmanr(x, y).statistic),
        "kendall": nan if constant else float(stats.kendalltau(x, y).statistic),
        "top_proponents": _overlap(-x, -y, k),
        "top_opponents": _overlap(x, y, k),
        "sign": float(np.mean(np.sign(x[both]) == np.sign(y[both]))) if both.any() else nan,
        "slope": float(x @ y / (x @ x)) if x.any() else nan,
        "total_ratio": float(y.sum() / x.sum()) if x.sum() else nan,
    }


def _overlap(x: Row, y: Row, k: int) -> float:
    """Return the share of x's k smallest that are among y's k smallest."""
    first = set(np.argsort(x, kind="stable")[:k].tolist())
    second = set(np.argsort(y, kind="stable")[:k].tolist())
    return len(first & second) / k
