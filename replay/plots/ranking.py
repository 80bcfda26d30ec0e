"""The strongest proponents and opponents of one test example."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from replay.plots.canvas import (
    BLUE,
    RED,
    canvas,
    label,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.results.influence import Influence
from replay.showing import Shown
from replay.task import Task, shown_example
from tracer.records import ID

_SIDE = 0.62  # inches of a picture


@styled
def ranking(
    influence: Influence,
    test_id: ID,
    *,
    method: str | None = None,
    k: int = 5,
    task: Task | None = None,
) -> Figure:
    """Draw the strongest proponents and opponents of a test example, with pictures or text.

    Args:
        influence: The result.
        test_id: The test example.
        method: The method; default: the first of the result.
        k: Proponents, and as many opponents.
        task: Shows what the examples are (``Task.show``); default: their IDs alone.

    Raises:
        InputError: The test example or the method is not in the result.
    """
    method = next(iter(influence.scores)) if method is None else method
    ids, scores = strongest(influence, test_id, method, k)
    figure, (axes,) = canvas(1, 1, 6.4, 1.5 + (_SIDE if task else 0.3) * max(1, len(ids)))
    axes.barh(
        np.arange(len(ids)),
        scores,
        color=[BLUE if score > 0 else RED for score in scores],
        height=0.6,
    )
    say = _sayer(task)
    views = [say("train", identity) for identity in ids]
    names = [
        label(f"{identity} {view.text}".rstrip(), 40)
        for identity, view in zip(ids, views, strict=True)
    ]
    axes.set_yticks(range(len(ids)), names)
    axes.set_ylim(max(1, len(ids)) - 0.5, -0.5)
    zero_line(axes, vertical=True)
    axes.grid(axis="x")
    axes.set_xlabel(
        f"← opponent     {method} score [{unit_of(influence.attributes)}]     proponent →"
    )
    about = say("test", test_id).text
    axes.set_title(label(f"test example {test_id}" + (f": {about}" if about else ""), 60))
    _draw_pictures(axes, views)
    shown = [Patch(color=BLUE, label="proponent"), Patch(color=RED, label="opponent")]
    axes.legend(handles=shown, loc="lower right")
    say_missing(axes, influence.scores[method][influence.row(test_id)])
    return figure


def strongest(
    influence: Influence, test_id: ID, method: str, k: int
) -> tuple[list[ID], list[float]]:
    """Return the k strongest proponents and then the k strongest opponents, the strongest last.

    Only what is above 0 is a proponent, and only what is below 0 an opponent.
    """
    up = zip(*influence.top(test_id, method=method, k=k), strict=True)
    down = zip(*influence.bottom(test_id, method=method, k=k), strict=True)
    found = [(identity, float(score)) for identity, score in up if 0 < score < np.inf]
    found += [(i, float(s)) for i, s in reversed([*down]) if -np.inf < s < 0]
    return [identity for identity, _ in found], [score for _, score in found]


def _sayer(task: Task | None) -> Callable[[str, ID], Shown]:
    """Return what says of an example of a side how it is shown."""

    def say(side: str, identity: ID) -> Shown:
        return Shown() if task is None else shown_example(task, getattr(task, side), identity)

    return say


def _draw_pictures(axes: Axes, views: list[Shown]) -> None:
    """Draw each example's first picture beside its bar."""
    rows = max(1, len(views))
    for row, view in enumerate(views):
        if view.pictures:
            place = (1.01, 1 - (row + 0.95) / rows, 0.12, 0.9 / rows)
            inset = axes.inset_axes(place)
            inset.imshow(view.pictures[0], interpolation="nearest")
            inset.set_axis_off()
            inset.set_anchor("W")
