"""Examples that moved themselves most, and how many mislabelled ones are among them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from replay.arguments import whole
from replay.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    canvas,
    drawn,
    ink,
    label,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.results.self_influence import SelfInfluence
from tracer.errors import InputError, shown
from tracer.records import ID

_COLOURS = (BLUE, ORANGE, GREEN, PINK)
_DASHES = ("-", "--", "-.", ":")


@styled
def self_influence(
    found: SelfInfluence,
    *,
    k: int = 20,
    mislabelled: Collection[ID] | None = None,
    width: float = 4.6,
) -> Figure:
    """Draw the examples with the largest self-influence.

    Where it is known which examples are mislabelled, a second panel has the share of them that is
    found when the examples are looked at in the order of each score.

    Args:
        found: The result.
        k: How many examples are named.
        mislabelled: IDs of those that are known to be mislabelled.
        width: Of one panel, in inches.

    Raises:
        InputError: One of them is not in the result.
    """
    first = next(iter(found.scores))
    ids, scores = found.top(k=whole("k", k), by=first)
    known = _known(found, mislabelled)
    panels = 1 if mislabelled is None else 2
    figure, axes = canvas(1, panels, width * panels, max(3.2, 1.2 + 0.22 * len(ids)))
    colours = [RED if identity in known else BLUE for identity in ids]
    axes[0].barh(np.arange(len(ids)), drawn(scores), color=colours, height=0.7)
    axes[0].set_yticks(range(len(ids)), [label(identity, 16) for identity in ids])
    axes[0].invert_yaxis()
    axes[0].set(xlabel=f"{first} [{unit_of(found.attributes)}]", ylabel="training example")
    axes[0].set_title(f"largest {first}-influence" if first == "self" else f"largest {first}")
    axes[0].grid(axis="x")
    zero_line(axes[0], vertical=True)
    say_missing(axes[0], found.scores[first])
    if mislabelled is not None:
        _curves(axes[1], found, known)
    return figure


def share_found(scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of the wanted ones among the k largest scores, for k from 0 to N."""
    order = np.argsort(-scores, kind="stable")
    total = max(1, int(wanted.sum()))
    return np.concatenate([[0.0], np.cumsum(wanted[order]) / total])


def _curves(axes: Axes, found: SelfInfluence, known: frozenset[ID]) -> None:
    wanted = np.array([identity in known for identity in found.train_ids])
    looked_at = np.arange(len(wanted) + 1) / max(1, len(wanted))
    for n, (name, scores) in enumerate(found.scores.items()):
        shares = share_found(scores, wanted)
        shade, dash = _COLOURS[n % 4], _DASHES[n % 4]
        axes.plot(100 * looked_at, 100 * shares, label=name, color=shade, ls=dash)
    axes.plot([0, 100], [0, 100], color=GREY, lw=1, label="by chance")
    axes.axvline(20, color=ink(), lw=0.5, alpha=0.5)
    axes.set(xlabel="examples looked at [%]", ylabel="mislabelled ones found [%]")
    axes.set_title(f"{int(wanted.sum())} mislabelled of {len(wanted)}")
    axes.grid()
    axes.legend(loc="lower right")


def _known(found: SelfInfluence, mislabelled: Collection[ID] | None) -> frozenset[ID]:
    known = frozenset(mislabelled or ())
    missing = sorted(known - set(found.train_ids), key=str)
    if missing:
        raise InputError(
            f"mislabelled names the example {shown(missing[0])}, which the result does not have; "
            f"its {len(found.train_ids)} IDs begin "
            f"{', '.join(map(shown, found.train_ids[:3]))}."
        )
    return known
