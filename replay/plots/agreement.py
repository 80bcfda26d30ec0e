"""How far methods agree: a matrix over pairs of methods, and their scores against each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.arguments import one_of
from replay.plots.canvas import (
    BLUE,
    canvas,
    cross,
    diagonal,
    drawn,
    ink,
    say_missing,
    styled,
    unit_of,
)
from replay.results.agreement import METRICS, Agreement
from replay.results.influence import Influence

_MATRIX = METRICS[:6]  # those that are the same both ways and at most 1
_SHOWN = {"pearson": "Pearson's r", "spearman": "Spearman's ρ", "kendall": "Kendall's τ"}
_RASTER = 3000  # points that are an image from here on, also in a PDF
_COLUMNS = 3
_DARK = 0.65  # from here on, cells are dark


@styled
def agreement(influence: Influence, *, metric: str = "spearman", k: int = 10) -> Figure:
    """Draw how far each pair of methods agrees: the mean over test examples.

    Brackets hold the 95 % bootstrap interval of that mean.

    Args:
        influence: The result.
        metric: ``"pearson"``, ``"spearman"``, ``"kendall"``, ``"top_proponents"``,
            ``"top_opponents"`` or ``"sign"``.
        k: Size of the top-k overlaps.

    Raises:
        InputError: There is no such metric.
    """
    one_of("metric", metric, dict.fromkeys(_MATRIX))
    found = influence.agreement(k=k, progress=False)
    methods, size = list(influence.scores), len(influence.scores)
    figure, (axes,) = canvas(1, 1, 1.9 + 1.15 * size, 1.3 + 0.85 * size)
    table = np.array([[_value(found, a, b, metric) for b in methods] for a in methods])
    image = axes.imshow(table, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text = _cell(found, methods[row], methods[column], metric)
        dark, empty = abs(value) > _DARK, np.isnan(value)
        shade = ink() if empty else "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=shade)
    axes.set_xticks(range(size), methods)
    axes.set_yticks(range(size), methods)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    over = len(influence.test_ids)
    axes.set_title(f"{metric_name(metric, found.k)}: mean over {over} test examples, 95 % interval")
    figure.colorbar(image, ax=axes, label="1: the same order   −1: the reverse", shrink=0.9)
    return figure


@styled
def scatter(
    influence: Influence, *, pairs: list[tuple[str, str]] | None = None, width: float = 3.3
) -> Figure:
    """Draw the scores of methods against each other: a dot is a training and a test example.

    Args:
        influence: The result.
        pairs: Pairs of methods, x then y; default: every pair.
        width: Of one panel, in inches.
    """
    pairs = list(combinations(influence.scores, 2)) if pairs is None else pairs
    columns = min(_COLUMNS, max(1, len(pairs)))
    rows = -(-max(1, len(pairs)) // columns)
    figure, found = canvas(rows, columns, width * columns, width * rows)
    for axes, pair in zip(found, pairs, strict=False):
        _scatter(axes, influence, pair)
    for axes in found[len(pairs) :]:
        axes.set_axis_off()
    return figure


def metric_name(metric: str, k: int) -> str:
    """Return what a metric is called in a figure.

    >>> metric_name("top_proponents", 10)
    'share of the top 10 proponents in common'
    """
    if metric.startswith("top_"):
        return f"share of the top {k} {metric.removeprefix('top_')} in common"
    return _SHOWN.get(metric, metric.replace("_", " "))


def _scatter(axes: Axes, influence: Influence, pair: tuple[str, str]) -> None:
    x, y = (drawn(influence.scores[one_of("method", m, influence.scores)]).ravel() for m in pair)
    cross(axes)
    axes.plot(
        *(x, y, "o"),
        ms=2.6,
        mew=0,
        alpha=0.45 if len(x) < _RASTER else 0.25,
        color=BLUE,
        rasterized=len(x) >= _RASTER,
    )
    diagonal(axes, x, y)
    axes.set(xlabel=f"{pair[0]} score [{unit_of(influence.attributes)}]", ylabel=f"{pair[1]} score")
    say_missing(axes, *(influence.scores[method] for method in pair))


def _value(found: Agreement, first: str, second: str, metric: str) -> float:
    return 1.0 if first == second else found.get((first, second), metric).mean


def _cell(found: Agreement, first: str, second: str, metric: str) -> str:
    if first == second:
        return "1"
    one = found.get((first, second), metric)
    low, high = one.interval()
    if np.isnan(one.mean):
        return "n/a"
    return f"{one.mean:.3f}" + ("" if np.isnan(low) else f"\n[{low:.3f}, {high:.3f}]")
