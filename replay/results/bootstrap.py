"""How sure a mean over test examples is."""

from __future__ import annotations

import inspect

import numpy as np
from scipy import stats

from replay.results.row import Row

_RESAMPLES = 2000
_RNG = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"


def mean_interval(values: Row, confidence: float) -> tuple[float, float]:
    """Return the bias-corrected, accelerated bootstrap interval of a mean; always the same one.

    NaN of fewer than two values; values that are all the same are an interval of no width.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return float(values.min()), float(values.max())
    how = {"confidence_level": confidence, "n_resamples": _RESAMPLES}
    random = {_RNG: np.random.default_rng(0)}
    found = stats.bootstrap((values,), np.mean, **how, **random).confidence_interval
    return float(found.low), float(found.high)
