"""How well two score tables agree, test example by test example.

For each row (one test example, N training examples) of two tables x and y:

- pearson, spearman, kendall: correlations (Kendall's tau-b, by ``scipy.stats``);
- top-k proponents and opponents: share of x's k largest (smallest) that are among y's;
- sign: share of examples with the same sign, among those where neither score is 0;
- slope: least squares through the origin, ``⟨x, y⟩ / ⟨x, x⟩``;
- total_ratio: ``Σ y / Σ x``, which shows a wrong scale that correlations hide.

NaN where a row is constant or not finite, or a denominator is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from replay.arguments import listed, one_of
from replay.results.bootstrap import mean_interval
from replay.results.row import RankedRow, Row
from replay.results.summary import summary
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
LABELS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "lds": "LDS",
    "kendall": "Kendall",
    "top_proponents": "top-{k} proponents",
    "top_opponents": "top-{k} opponents",
    "sign": "same sign",
    "slope": "scale (slope)",
    "total_ratio": "ratio of totals",
}
_ONE_WAY = ("slope", "total_ratio")  # of y against x is not of x against y


@dataclass(frozen=True, repr=False)
class Comparison:
    """One metric of one pair of methods over the test examples.

    Attributes:
        pair: The two methods, x then y.
        metric: One of ``METRICS``, or ``"lds"``.
        values: One for each test example, float64 ``(m,)``; NaN where undefined.
    """

    pair: tuple[str, str]
    metric: str
    values: Row

    def __repr__(self) -> str:
        count = int((~np.isnan(self.values)).sum())
        of = f"{count} of {len(self.values)} test examples"
        return f"Comparison of {self.pair}: {self.metric}, median {self.median:.4g} over {of}"

    def quantile(self, q: float) -> float:
        """Return a quantile over the test examples where the metric is defined."""
        defined = self.values[~np.isnan(self.values)]
        return float(np.quantile(defined, q)) if len(defined) else float("nan")

    @property
    def median(self) -> float:
        """The median over test examples."""
        return self.quantile(0.5)

    @property
    def mean(self) -> float:
        """The mean over the test examples where the metric is defined."""
        defined = self.values[~np.isnan(self.values)]
        return float(defined.mean()) if len(defined) else float("nan")

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a bootstrap interval of the mean over test examples; NaN of fewer than two."""
        return mean_interval(self.values[~np.isnan(self.values)], confidence)


@dataclass(frozen=True, repr=False)
class Agreement:
    """Comparisons of every pair of methods.

    Attributes:
        rows: One for each pair and metric.
        k: Size of the top-k overlaps.
        protocol: Of the ground truth that methods were compared with; empty without one.
    """

    rows: list[Comparison]
    k: int
    protocol: str = ""

    def __repr__(self) -> str:
        medians = {
            f"{second} against {first}": ", ".join(
                f"{row.metric} {row.median:.3g}" for row in self.rows if row.pair == (first, second)
            )
            for first, second in self.pairs
        }
        return summary(f"Agreement: medians over test examples, top {self.k}", medians)

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
        one_of("metric", metric, dict.fromkeys(row.metric for row in self.rows))
        rows = {row.pair: row for row in self.rows if row.metric == metric}
        if names in rows:
            return rows[names]
        if metric in _ONE_WAY:
            raise InputError(
                f"{metric} differs for {names[0]} against {names[1]}; what was compared is "
                f"{names[::-1]}."
            )
        return replace(rows[names[::-1]], pair=names)


def compare_methods(
    scores: Mapping[str, Row], *, k: int, advance: Callable[[], None] = lambda: None
) -> Agreement:
    """Compare every pair of methods.

    Args:
        scores: By method, float64 ``(m, N)``.
        k: Size of the top-k overlaps, which are NaN unless it is below N.
        advance: Called after each test example.
    """
    pairs, found = list(combinations(scores, 2)), []
    k = min([k, *(table.shape[1] for table in scores.values())])
    for j in range(max(map(len, scores.values()), default=0) if pairs else 0):
        rows = {method: RankedRow(table[j], k) for method, table in scores.items()}
        found.append([rows[first].metrics(rows[second]) for first, second in pairs])
        advance()
    comparisons = [
        Comparison(pair, metric, np.array([one[n][metric] for one in found]))
        for n, pair in enumerate(pairs)
        for metric in METRICS
    ]
    return Agreement(comparisons, k)


def totals_hold(x: Row, y: Row, *, share: float = 0.1) -> NDArray[np.bool_]:
    """Return for which test examples the ratio of two tables' totals says something, ``(m,)``.

    It says nothing where the scores of either cancel: where their sum is below ``share`` of the
    sum of their absolute values.
    """
    rows = ([abs(row.sum()) >= share * np.abs(row).sum() for row in table] for table in (x, y))
    holds: NDArray[np.bool_] = np.logical_and(*map(np.array, rows))
    return holds


def where_totals_hold(row: Comparison, scores: Mapping[str, Row]) -> Comparison:
    """Return a ratio of totals where it says something: at no test example if at few."""
    holds = totals_hold(*(scores[method] for method in row.pair))
    enough = holds & (2 * holds.sum() >= len(holds))
    return replace(row, values=np.where(enough, row.values, np.nan))
