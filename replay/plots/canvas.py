"""How figures look: sizes, colours and axes; nothing global is changed.

Colours are those of Okabe and Ito, which colour-blind people tell apart. Lines, text and frames
take the colour of the caller's matplotlib settings (``text.color`` and the like).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from replay.methods.names import NAMES
from replay.showing import legible

P = ParamSpec("P")
T = TypeVar("T")
Values = NDArray[np.float64]

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#8C8C8C"
_OF_METHODS = (BLUE, GREEN, ORANGE, SKY, PINK)
_MARKS = ("o", "s", "^", "D", "v")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # an ID may hold dollar signs
}
_NEAR = 3  # times that scales may differ where a diagonal helps


def styled(draws: Callable[P, T]) -> Callable[P, T]:
    """Let a function draw in this style, and leave matplotlib's settings as they were."""

    @wraps(draws)
    def told(*given: P.args, **named: P.kwargs) -> T:
        with mpl.rc_context(_STYLE):
            return draws(*given, **named)

    return told


def canvas(
    rows: int, columns: int, width: float, height: float, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many inches and its axes, row by row; no window knows of it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, [axes for row in found for axes in row]


def colour(method: str) -> str:
    """Return the colour of a method, the same in every figure."""
    known = list(NAMES)
    return _OF_METHODS[known.index(method) % len(_OF_METHODS)] if method in known else GREY


def mark(method: str) -> str:
    """Return the marker of a method, so that no figure lives by colour alone."""
    known = list(NAMES)
    return _MARKS[known.index(method) % len(_MARKS)] if method in known else "X"


def ink() -> str:
    """Return the colour of text."""
    return str(mpl.rcParams["text.color"])


def label(text: object, most: int = 24) -> str:
    """Return text for an axis: printable, on one line, and short.

    >>> label("a very long name of an image", 12)
    'a very long…'
    """
    plain = " ".join(legible(text).split())
    return plain if len(plain) <= most else plain[: most - 1].rstrip() + "…"


def drawn(values: Any) -> Values:
    """Return numbers that can be drawn: NaN in place of infinite ones."""
    found = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def say_missing(axes: Axes, *values: Any) -> None:
    """Say on the axes how many numbers are not finite, if any."""
    rows = (row for one in values for row in np.atleast_2d(one))  # of tables beyond memory, too
    count = sum(int((~np.isfinite(row)).sum()) for row in rows)
    if count:
        text, where = f"{count} not finite, not drawn", axes.transAxes
        axes.text(0.5, 0.98, text, transform=where, ha="center", va="top", fontsize=8, color=RED)


def zero_line(axes: Axes, *, vertical: bool = False) -> None:
    """Draw where the sign changes."""
    line = axes.axvline if vertical else axes.axhline
    line(0, color=ink(), lw=0.8, zorder=1)


def diagonal(axes: Axes, x: Values, y: Values) -> None:
    """Draw where both are equal, unless they differ much in size."""
    sizes = [float(np.nanmax(np.abs(v), initial=0)) for v in (x, y)]
    if 0 < max(sizes) < _NEAR * min(sizes):
        axes.axline((0, 0), slope=1, color=ink(), lw=0.8, ls="--", alpha=0.7, label="equal")
        axes.legend(loc="lower right")


def cross(axes: Axes) -> None:
    """Draw where the signs of both change."""
    axes.axhline(0, color=ink(), lw=0.5, alpha=0.4)
    axes.axvline(0, color=ink(), lw=0.5, alpha=0.4)


def unit_of(attributes: Any) -> str:
    """Return the unit of a result's numbers, short enough for an axis."""
    said = str(attributes.get("unit", "")).split(";")[0]
    return said.removesuffix(" returns it").removeprefix("as ") or "test value"
