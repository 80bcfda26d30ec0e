"""What the strongest examples of a test example had earned, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from replay.arguments import one_of, whole
from replay.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    canvas,
    drawn,
    ink,
    label,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.plots.ranking import strongest
from replay.results.influence import Influence
from tracer.errors import InputError, shown
from tracer.records import ID

_UP, _DOWN = (BLUE, SKY, GREEN), (RED, ORANGE, PINK)
_DASHES = ("-", "--", ":")


@styled
def over_time(
    influence: Influence,
    test_id: ID,
    *,
    method: str | None = None,
    k: int = 3,
    learning_rates: ArrayLike | None = None,
    width: float = 6.4,
) -> Figure:
    """Draw the influence that the strongest examples had earned by each step.

    Args:
        influence: The result, with periods (``by="step"``, ``"epoch"`` or a number).
        test_id: The test example.
        method: The method; default: the first that has periods.
        k: Proponents, and as many opponents.
        learning_rates: Of each step of the result, ``(T,)``, drawn below.
        width: In inches.

    Raises:
        InputError: The result has no periods, or not the test example or the method.
    """
    if not influence.by_period:
        raise InputError(
            "the result has no scores by period, which influence over time is drawn from.\n"
            '1. Ask again: run.influence(..., by="epoch") or by="step" (--by).'
        )
    method = one_of("method", method or next(iter(influence.by_period)), influence.by_period)
    rates = _rates(influence, learning_rates)
    ratios = {"height_ratios": [3, 1][: 1 if rates is None else 2]}
    figure, axes = canvas(
        *(len(ratios["height_ratios"]), 1, width, 3.9 if rates is None else 4.9),
        sharex=True,
        gridspec_kw=ratios,
    )
    _curves(axes[0], influence, test_id, method, whole("k", k))
    if axes[0].get_legend_handles_labels()[0]:  # outside: curves may be anywhere inside
        figure.legend(
            loc="outside lower center", ncols=2, title="+ proponent   − opponent", title_fontsize=9
        )
    if rates is not None:
        axes[1].step(
            [*influence.steps, influence.steps[-1] + 1],
            [*rates, rates[-1]],
            color=ink(),
            where="post",
        )
        axes[1].set(ylabel="learning\nrate", ylim=(0, None))
    axes[-1].set_xlabel("step")
    return figure


def _curves(axes: Axes, influence: Influence, test_id: ID, method: str, k: int) -> None:
    ids, scores = strongest(influence, test_id, method, k)
    up, down = 0, 0
    for identity, score in zip(ids, scores, strict=True):
        steps, earned = influence.curve(test_id, train_id=identity, method=method)
        places = np.array([influence.steps[0], *(steps + 1)])
        n = up if score > 0 else down
        up, down = up + (score > 0), down + (score < 0)
        axes.plot(
            *(places, drawn([0.0, *earned.cumsum()])),
            color=(_UP if score > 0 else _DOWN)[n] if n < len(_UP) else GREY,
            ls=_DASHES[n % len(_DASHES)],
            label=label(f"{'+' if score > 0 else '−'} {identity}", 18),
        )
        say_missing(axes, earned)
    zero_line(axes)
    axes.grid(axis="y")
    axes.set_ylabel(f"{method} score so far\n[{unit_of(influence.attributes)}]")
    axes.set_title(label(f"test example {test_id}", 40))


def _rates(influence: Influence, given: ArrayLike | None) -> list[float] | None:
    if given is None:
        return None
    rates = np.asarray(given, dtype=np.float64)
    if rates.shape != (len(influence.steps),) or not len(rates):
        raise InputError(
            f"learning_rates must hold one number for each of the {len(influence.steps)} steps of "
            f"the result, found {shown(given)}."
        )
    return [float(rate) for rate in rates]
