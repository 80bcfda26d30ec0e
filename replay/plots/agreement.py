"""How far methods agree: a matrix over pairs of methods, and their scores against each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
from replay.results.agreement import LABELS, METRICS, Agreement
from replay.results.influence import Influence

Table = NDArray[np.float64]
Places = NDArray[np.int64]
_MATRIX = METRICS[:6]  # those that are the same both ways and at most 1
_RASTER = 1500  # points that are an image from here on, also in a PDF
_COLUMNS = 3
_DOTS = 1 << 16  # drawn at most, besides the largest
LARGEST = 1500  # dots that are always drawn
_PALE = 1.8  # beyond the range, so that black text stands on every cell


@styled
def agreement(
    influence: Influence, *, metric: str = "spearman", k: int = 10, width: float | None = None
) -> Figure:
    """Draw how far each pair of methods agrees: the mean over test examples.

    Below it stands its 95 % bootstrap interval.

    Args:
        influence: The result.
        metric: ``"pearson"``, ``"spearman"``, ``"kendall"``, ``"top_proponents"``,
            ``"top_opponents"`` or ``"sign"``.
        k: Size of the top-k overlaps.
        width: In inches; default: as the number of methods needs.

    Raises:
        InputError: There is no such metric.
    """
    one_of("metric", metric, dict.fromkeys(_MATRIX))
    found = influence.agreement(k=k, progress=False)
    methods, size = list(influence.scores), len(influence.scores)
    figure, (axes,) = canvas(1, 1, width or 1.9 + 1.15 * size, 1.1 + 0.8 * size)
    table = np.array([[_value(found, a, b, metric) for b in methods] for a in methods])
    axes.imshow(table, cmap="PuOr_r", vmin=-_PALE, vmax=_PALE, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text = _cell(found, methods[row], methods[column], metric)
        shade = ink() if np.isnan(value) else "black"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(size), methods)
    axes.set_yticks(range(size), methods)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    over = len(influence.test_ids)
    name = LABELS[metric].format(k=found.k)
    axes.set_title(f"{name}: mean over {over} test examples\nand its 95 % interval", fontsize=10)
    return figure


@styled
def scatter(
    influence: Influence, *, pairs: list[tuple[str, str]] | None = None, width: float = 3.3
) -> Figure:
    """Draw the scores of methods against each other: a dot is a training and a test example.

    Of very many dots the largest are drawn, and others taken evenly; a title says so.

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


def strongest(x: Table, y: Table) -> Places:
    """Return the places of the largest scores of either table that are finite in both.

    Rows are looked at one by one: tables may be larger than memory.
    """
    whole = _largest(x, y)
    sizes, places, least = np.zeros(0), np.zeros(0, np.int64), -1.0
    for j, (finite, *rows) in enumerate(_rows(x, y)):
        shares = [np.abs(row) / size for row, size in zip(rows, whole, strict=True)]
        found = np.where(finite, np.maximum(*shares), -1.0)
        new = np.flatnonzero(found > least)
        sizes = np.concatenate([sizes, found[new]])
        places = np.concatenate([places, new + j * len(found)])
        kept = np.argsort(-sizes, kind="stable")[:LARGEST]
        sizes, places = sizes[kept], places[kept]
        least = sizes[-1] if len(kept) == LARGEST else -1.0
    return np.sort(places)


def _rows(x: Table, y: Table) -> Iterator[tuple[NDArray[np.bool_], Table, Table]]:
    """Yield each row of two tables, and where both are finite."""
    for a, b in zip(x, y, strict=True):
        yield np.isfinite(a) & np.isfinite(b), a, b


def _largest(x: Table, y: Table) -> list[float]:
    """Return the largest size in each of two tables, where both are finite."""
    found = [1e-300, 1e-300]
    for finite, *rows in _rows(x, y):
        sizes = [float(np.abs(row[finite]).max(initial=0)) for row in rows]
        found = [*map(max, found, sizes)]
    return found


def _scatter(axes: Axes, influence: Influence, pair: tuple[str, str]) -> None:
    tables = [influence.scores[one_of("method", m, influence.scores)] for m in pair]
    size, places = tables[0].size, np.arange(min(tables[0].size, _DOTS))
    if size > _DOTS:
        evenly = np.linspace(0, size - 1, _DOTS).astype(np.int64)
        places = np.union1d(evenly, strongest(*tables))
        axes.set_title(f"{len(places):,} of {size:,} dots: the largest, and others evenly")
    x, y = (drawn(table.reshape(-1)[places]) for table in tables)
    cross(axes)
    axes.plot(
        *(x, y, "o"),
        ms=2.6,
        mew=0,
        alpha=0.45 if len(x) < _RASTER else 0.35,
        color=BLUE,
        rasterized=len(x) >= _RASTER,
    )
    diagonal(axes, x, y)
    axes.set(xlabel=f"{pair[0]} score [{unit_of(influence.attributes)}]", ylabel=f"{pair[1]} score")
    say_missing(axes, *tables)


def _value(found: Agreement, first: str, second: str, metric: str) -> float:
    return 1.0 if first == second else found.get((first, second), metric).mean


def _cell(found: Agreement, first: str, second: str, metric: str) -> str:
    if first == second:
        return "1"
    one = found.get((first, second), metric)
    low, high = one.interval()
    if np.isnan(one.mean):
        return "n/a"
    return f"{one.mean:.3f}" + ("" if np.isnan(low) else f"\n{low:.3f} to\n{high:.3f}")
