"""How well methods foretell counterfactual runs."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.arguments import one_of
from replay.plots.agreement import metric_name
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
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.row import Row
from replay.results.truth import LDS
from replay.results.truth import foretold as predictions

_RANKED = ("pearson", "spearman", LDS, "kendall", "top_proponents", "top_opponents", "sign")


@styled
def against_truth(
    influence: Influence, truth: Counterfactual, *, metric: str | None = None
) -> Figure:
    """Draw how well each method foretells counterfactual runs, with 95 % bootstrap intervals.

    A faint dot is one test example; the marker is their mean.

    Args:
        influence: The result.
        truth: Counterfactual runs of the same run.
        metric: A metric of the comparison; default: all correlations and shares.

    Raises:
        InputError: The truth is of another run or of other examples; there is no such metric.
    """
    found = influence.agreement(truth=truth, progress=False)
    there = list(dict.fromkeys(row.metric for row in found.rows))
    metrics = (
        [m for m in _RANKED if m in there] if metric is None else [one_of("metric", metric, there)]
    )
    methods = [second for _, second in found.pairs]
    figure, (axes,) = canvas(1, 1, 6.4, 1.6 + 0.24 * len(metrics) * (len(methods) + 0.6))
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
    axes.set_yticks(range(len(metrics)), [_name(m, found.k) for m in metrics])
    axes.invert_yaxis()
    zero_line(axes, vertical=True)
    axes.grid(axis="x")
    axes.set_xlabel("mean over test examples, with its 95 % interval; 1: foretold, 0: by chance")
    axes.set_title(found.protocol, fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(4, max(1, len(methods))))
    return figure


@styled
def foretold(influence: Influence, truth: Counterfactual) -> Figure:
    """Draw what counterfactual runs changed against what each method predicts.

    A dot is a run and a test example.

    Args:
        influence: The result.
        truth: Counterfactual runs of the same run.

    Raises:
        InputError: The truth is of other examples.
    """
    ids = influence.test_ids, influence.train_ids
    found = predictions(influence.scores, *ids, truth)
    methods, width = list(influence.scores), 3.3
    figure, axes = canvas(1, len(methods), width * len(methods), width, sharey=True)
    measured = np.concatenate([one.measured for one in found])
    for own, method in zip(axes, methods, strict=True):
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


def _name(metric: str, k: int) -> str:
    return "LDS" if metric == LDS else metric_name(metric, k)
