r"""Secant rules: means that meet the measured drop of each interval, across kinks too.

*Secant rule* on ``[a, b]``: ``θ q_a + (1−θ) q_b``, with ``θ ∈ [0, 1]`` such that the drop is the
measured one. It is exact where ``q`` jumps once and is constant elsewhere; θ is where it jumps.

*With a trend*: ``q`` goes on as in the interval beside it, and jumps once. That is exact where
``q`` is linear but for one jump, as along a step of a network with ReLUs to second order. Of both
neighbours the one is taken whose drop its own ends predict better. Where neither is better than the
interval itself, or the jump would be outside of it, the rule is the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replay.path.quadrature.samples import Array, Samples, norm

JUMP = 0.25  # of what the shares may jump in an interval its integral may be off by
_OWN = 0.25  # of the difference of its ends may be a jump where an interval has its own trend


def secant(samples: Samples) -> Array:
    """Return θ of each interval, 1/2 where any would do, ``(m, N - 1)``.

    >>> u = np.array([[0.0, 1.0]])  # φ falls by 3u up to the kink at 1/4, then by u
    >>> samples = Samples(u, np.array([[1.5, 0.0]]), np.array([[3.0, 1.0]]), u[..., None])
    >>> secant(samples).tolist()
    [[0.25]]
    """
    left, right = samples.slopes[:, :-1], samples.slopes[:, 1:]
    gap = left - right
    flat = np.abs(gap) <= 1e-14 * (np.abs(left) + np.abs(right))
    drop = _over(samples.drops, samples.widths)
    found: Array = np.where(flat, 0.5, _over(drop - right, np.where(flat, 0.0, gap))).clip(0, 1)
    return found


@dataclass(frozen=True)
class Integrals:
    """What an average is made of.

    Attributes:
        weights: Of the points, ``(m, N)``.
        shares: Integrals of the shares over each interval, ``(m, N - 1, b)``.
        jumps: By how much the split may jump in it, times its length, ``(m, N - 1)``.
        kinks: Where it would jump, ``(m, N - 1)``.
    """

    weights: Array
    shares: Array
    jumps: Array
    kinks: Array

    def of(self, chosen: NDArray[np.bool_]) -> Integrals:
        """Return those of some test examples."""
        tables = (self.weights, self.shares, self.jumps, self.kinks)
        return Integrals(*(table[chosen] for table in tables))


def with_trends(samples: Samples) -> Integrals:
    """Return the secant rule with trends.

    >>> u = np.array([[0.0, 0.5, 1.0]])  # φ falls by 1 + u, and by 3 more from the kink at 3/4 on
    >>> values, slopes = np.array([[2.25, 1.625, 0.0]]), np.array([[1.0, 1.5, 5.0]])
    >>> found = with_trends(Samples(u, values, slopes, slopes[..., None]))
    >>> found.shares[..., 0].tolist(), float(found.weights[0] @ slopes[0])
    ([[0.625, 1.625]], 2.25)
    """
    h, rows = samples.widths, np.arange(len(samples.u))[:, None]
    beside, goes_on = _beside(samples)
    ratio = np.where(goes_on, _over(h, h[rows, beside]), 0.0)  # of the trend's rises
    rise = np.diff(samples.slopes)
    trend = ratio * rise[rows, beside]
    after = _over(samples.drops - h * (samples.slopes[:, :-1] + trend / 2), rise - trend)
    fits = goes_on & (after >= 0) & (after <= h)
    theta = secant(samples)
    after = np.where(fits, after, (1 - theta) * h)  # how much lies behind the jump
    taken = np.where(fits, ratio * (h / 2 - after), 0.0)

    shares, rises = samples.shares, np.diff(samples.shares, axis=1)
    theirs = rises[rows, beside]
    integrals = (h - after)[..., None] * shares[:, :-1] + after[..., None] * shares[:, 1:]
    may_jump = np.where(goes_on, 1.0, np.maximum(np.abs(theta - 0.5), _OWN))
    return Integrals(
        _weights(h, after, taken, beside),
        integrals + taken[..., None] * theirs,
        norm(rises - ratio[..., None] * theirs) * h * may_jump,
        samples.u[:, 1:] - after,
    )


def _beside(samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the neighbour that gives each interval its trend, and where one does."""
    off = np.abs(_over(samples.off, samples.widths, np.inf))
    edge = np.full((len(off), 1), np.inf)
    left, right = np.hstack((edge, off[:, :-1])), np.hstack((off[:, 1:], edge))
    gives = np.minimum(left, right) <= off
    own = np.arange(off.shape[1])
    return np.where(gives, own + np.where(left <= right, -1, 1), own), gives


def _weights(h: Array, after: Array, taken: Array, beside: NDArray[np.int64]) -> Array:
    """Return the weights of the points, ``(m, N)``."""
    found = np.zeros((len(h), h.shape[1] + 1))
    found[:, :-1] += h - after
    found[:, 1:] += after
    rows = np.arange(len(h))[:, None]
    np.add.at(found, (rows, beside + 1), taken)
    np.add.at(found, (rows, beside), -taken)
    return found


def _over(above: Array, below: Array, otherwise: float = 0.0) -> Array:
    """Return a quotient, and ``otherwise`` where it is none."""
    none = below == 0
    found: Array = np.where(none, otherwise, above / np.where(none, 1.0, below))
    return found
