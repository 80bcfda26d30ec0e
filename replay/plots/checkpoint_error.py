"""How far sums over checkpoints are from the exact scores, by number and placement."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.arguments import one_of
from replay.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    canvas,
    drawn,
    say_missing,
    styled,
)
from replay.results.checkpoint_sweep import ERRORS, CheckpointSweep
from replay.results.row import Row

_COLOURS = (BLUE, ORANGE, GREEN, PINK, RED)
_MARKS = ("o", "s", "^", "D", "v")
_NAMES = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",
    "relative_error": "error, by the exact scores' size",
    "scaled_error": "error after the best factor",
    "total_ratio": "total / exact total",
}


@styled
def checkpoint_error(
    sweep: CheckpointSweep,
    *,
    measure: str = "scaled_error",
    against: str | None = None,
    width: float = 3.8,
) -> Figure:
    """Draw the error of sums over checkpoints, by their number, a line for each placement.

    Markers are medians over test examples; bands go from the first to the third quartile.

    Args:
        sweep: The result of ``Replay.checkpoint_sweep``.
        measure: ``"pearson"``, ``"spearman"``, ``"relative_error"``, ``"scaled_error"`` or
            ``"total_ratio"``.
        against: The exact method; default: a panel for each of the sweep.
        width: Of one panel, in inches.

    Raises:
        InputError: There is no such measure or method.
    """
    one_of("measure", measure, ERRORS)
    methods = list(sweep.errors) if against is None else [one_of("against", against, sweep.errors)]
    figure, found = canvas(1, len(methods), width * len(methods), 3.6, sharey=True)
    for axes, method in zip(found, methods, strict=True):
        _panel(axes, sweep, sweep.errors[method][measure])
        axes.set_title(f"against {method}")
    found[0].set_ylabel(_NAMES[measure])
    handles, labels = found[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, title="where checkpoints stand"
    )
    return figure


def _panel(axes: Axes, sweep: CheckpointSweep, errors: Row) -> None:
    for n, placement in enumerate(dict.fromkeys(one.placement for one in sweep.choices)):
        rows = [i for i, one in enumerate(sweep.choices) if one.placement == placement]
        counts = [len(sweep.choices[i].steps) for i in rows]
        low, middle, high = (_quantiles(errors[rows], q) for q in (0.25, 0.5, 0.75))
        shade = _COLOURS[n] if n < len(_COLOURS) else GREY
        axes.plot(
            counts, middle, marker=_MARKS[n % len(_MARKS)], ms=5, color=shade, label=placement
        )
        axes.fill_between(counts, low, high, color=shade, alpha=0.12, lw=0)
    axes.set_xscale("log")
    ticks = sorted({len(one.steps) for one in sweep.choices})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("checkpoints")
    axes.grid()
    say_missing(axes, errors)


def _quantiles(errors: Row, q: float) -> list[float]:
    """Return a quantile of each row over the test examples where it is defined."""
    known = [row[np.isfinite(row)] for row in drawn(errors)]
    return [float(np.quantile(row, q)) if len(row) else float("nan") for row in known]
