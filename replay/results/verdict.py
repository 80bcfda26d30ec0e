"""What a result says in the end: how much is explained, and by which method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replay.methods.names import DEFAULT, NAMES
from replay.results.influence import Influence
from replay.results.summary import counted, number

_NEAR = 0.1  # of a measured drop: methods that are as near to it agree


def verdict(influence: Influence) -> list[str]:
    """Return a line for each method that predicts the measured drops, and whom to trust.

    What a method explains is the measured drop less its residual.
    """
    if not influence.terms:
        some = " or ".join(name for name in DEFAULT if NAMES[name].accounts)
        return [f"Verdict: nothing here was compared with measured drops; compute {some} as well."]
    measuring = [name for name in influence.terms if name in NAMES and NAMES[name].measured]
    predicting = [name for name in influence.terms if name not in measuring]
    best = next(iter(measuring), None)
    lines = [
        f"{_explains(influence, name)}{_advice(influence, name, best)}." for name in predicting
    ]
    several = len(influence.test_ids) > 1
    over = f" (mean over {counted(influence.test_ids)})" if several else ""
    return [f"Verdict{over}: {line}" for line in lines or [f"{_explains(influence, str(best))}."]]


def _explains(influence: Influence, name: str) -> str:
    """Return what a method explains of the measured drop, or what it predicts instead."""
    measured = float(_total(influence, name, "measured").mean())
    found = measured - float(_total(influence, name, "residual").mean())
    method = NAMES.get(name)
    first = method is not None and method.first_order
    who = f"first order ({name})" if first else name
    share = found / measured if measured else np.nan
    if 0 <= share <= 1 + _NEAR:
        return f"{who} explains {number(found)} of {number(measured)} ({100 * share:.3g} %)"
    how = f"{number(share, 2)} times the measured" if share > 0 else "measured was"
    return f"{who} predicts a drop of {number(found)}, {how} {number(measured)}"


def _advice(influence: Influence, name: str, best: str | None) -> str:
    """Return which method to trust, and for how many test examples it matters."""
    residual = np.abs(_total(influence, name, "residual"))
    off = residual > _NEAR * np.abs(_total(influence, name, "measured"))
    many = f" for {off.sum()} of {len(off)}" if len(off) > 1 else ""
    if not off.any():
        return f"; within {100 * _NEAR:.0f} %{' for every test example' if many else ''}"
    if best is None:
        better = next(other.name for other in NAMES.values() if other.measured)
        return f"; off by over {100 * _NEAR:.0f} %{many}: compute {better} as well"
    left = np.abs(_total(influence, best, "residual"))
    if not (left[off] < residual[off]).all():
        return f"; {best} itself leaves {number(left.max())} open"
    return f"; off by over {100 * _NEAR:.0f} %{many}: where they differ, trust {best}"


def _total(influence: Influence, method: str, term: str) -> NDArray[np.float64]:
    """Return a term summed over steps, ``(m,)``."""
    total: NDArray[np.float64] = influence.terms[method][term].sum(0)
    return total
