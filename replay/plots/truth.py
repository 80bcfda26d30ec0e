"""How well methods foretell counterfactual runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.arguments import one_of
from replay.plots.canvas import (
    canvas,
    colour,
    cross,
    diagonal,
    drawn,
    mark,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.results.agreement import LABELS
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.row import Row
from replay.results.truth import LDS
from replay.results.truth import foretold as predictions

_RANKED = ("pearson", "spearman", LDS, "kendall", "top_proponents", "top_opponents", "sign")


@styled
def against_truth(
    influence: Influence, truth: Counterfactual, *, metric: str | None = None, width: float = 6.4
) -> Figure:
    """Draw how well each method foretells counterfactual runs, with 95 % bootstrap intervals.

    A faint dot is one test example; the marker is their mean.

    Args:
        influence: The result.
        truth: Counterfactual runs of the same run.
        metric: A metric of the comparison; default: all correlations and shares.
        width: In inches.

    Raises:
        InputError: The truth is of another run or of other examples; there is no such metric.
    """
    found = influence.agreement(truth=truth, progress=False)
    there = list(dict.fromkeys(row.metric for row in found.rows))
    defined = {row.metric for row in found.rows if np.isfinite(row.values).any()}
    metrics = (
        [m for m in _RANKED if m in defined]
        if metric is None
        else [one_of("metric", metric, there)]
    )
    methods = [second for _, second in found.pairs]
    figure, (axes,) = canvas(1, 1, width, 1.8 + 0.24 * len(metrics) * (len(methods) + 0.6))
    step = 0.8 / max(1, len(methods))
    for n, method in enumerate(methods):
        for row, name in enumerate(metrics):
            one = found.get(found.pairs[n], name)
            low, high = one.interval()
            y, shade = row + step * (n - (len(methods) - 1) / 2), colour(method)
            values = drawn(one.values)
            axes.plot(values, np.full(len(values), y), ".", color=shade, ms=4, alpha=0.35, mew=0)
            axes.plot([low, high], [y, y], color=shade, lw=2)
            axes.plot(
                *(one.mean, y, mark(method)), color=shade, ms=7, label=method if row == 0 else None
            )
    axes.set_yticks(range(len(metrics)), [LABELS[m].format(k=found.k) for m in metrics])
    axes.invert_yaxis()
    zero_line(axes, vertical=True)
    axes.grid(axis="x")
    axes.set_xlabel("mean, with its 95 % interval")
    axes.set_title(textwrap.fill(found.protocol, int(9 * width)), fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(4, max(1, len(methods))))
    return figure


@styled
def foretold(
    influence: Influence,
    truth: Counterfactual,
    *,
    methods: Sequence[str] | None = None,
    width: float = 3.3,
) -> Figure:
    """Draw what counterfactual runs changed against what each method predicts.

    A dot is a run and a test example.

    Args:
        influence: The result.
        truth: Counterfactual runs of the same run.
        methods: Which methods, a panel each; default: all.
        width: Of one panel, in inches.

    Raises:
        InputError: The truth is of other examples, or there is no such method.
    """
    ids = influence.test_ids, influence.train_ids
    found = predictions(influence.scores, *ids, truth)
    chosen = [one_of("method", name, influence.scores) for name in methods or influence.scores]
    figure, axes = canvas(1, len(chosen), width * len(chosen), width, sharey=True)
    measured = np.concatenate([one.measured for one in found])
    for own, method in zip(axes, chosen, strict=True):
        _panel(own, method, np.concatenate([one.predicted[method] for one in found]), measured)
    axes[0].set_ylabel(f"measured change [{unit_of(influence.attributes)}]")
    return figure


def _panel(axes: Axes, method: str, predicted: Row, measured: Row) -> None:
    x, y = drawn(predicted), drawn(measured)
    axes.plot(x, y, mark(method), color=colour(method), ms=3.5, mew=0, alpha=0.5)
    cross(axes)
    diagonal(axes, x, y)
    axes.set(xlabel="predicted change", title=method)
    say_missing(axes, predicted, measured)
