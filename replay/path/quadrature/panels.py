"""Lobatto rules on parts of a step, for one test example: halved until each part is resolved.

A *panel* is a stretch of the step with a Lobatto rule of its own. One that is smooth climbs to the
rule that contains its own; one that is not, or that climbing helps too little, is halved. A kink
is where halving does not help either.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from replay.path.quadrature.lobatto import Rule, rules
from replay.path.quadrature.samples import Array, Samples, norm, relative
from replay.path.quadrature.secant import JUMP, secant, with_trends

MOST_IN_PANELS = 127  # points between the ends
EXPLAINED = 0.03  # of what two ends of each interval leave of the values may a smooth one leave
_NARROW = 1 / 8  # a panel of that width climbs to 7 points before it is taken for kinked
_FALLS = 0.05  # where the rules converge as fast as that there is no kink
_SLOW = 0.3  # a rule whose change is not that much smaller than the last is not worth the next
_REST = 0.2


def fitted(rule: Rule, samples: Samples, noise: Array) -> tuple[Array, Array]:
    """Return weights that meet the drop, and how much of what trapezoids leave the rule leaves.

    What the rule leaves is made up for by as small a share of what the secant rule moves weights
    by in each interval, where trapezoids leave all of it.
    """
    weights = rule.weights * samples.widths.sum(1, keepdims=True)
    moved = (secant(samples) - 0.5) * samples.widths * np.sign(samples.off)
    towards = np.zeros_like(samples.u)
    towards[:, :-1] += moved
    towards[:, 1:] -= moved
    left = samples.drops.sum(1) - (samples.slopes * weights).sum(1)
    share = relative(left, (towards * samples.slopes).sum(1))
    share = np.where(np.abs(share) <= EXPLAINED, share, 0.0)
    beyond = np.maximum(np.abs(left) - noise, 0)
    explained = relative(beyond, np.abs(samples.off).sum(1))
    return weights + share[:, None] * towards, explained


def nearer(change: Array, before: Array, noise: Array) -> Array:
    """Return how far a rule may be off: by what it changed, as often less as that is less.

    The errors of the rules fall by ever higher powers of what the width of a panel is to its
    curvature, so the next change is smaller than that. What is rounding does not fall.

    >>> change, before, noise = np.array([[1e-4, 1e-9], [1e-2, 1e-5], [1e-12, 1e-12]])
    >>> [f"{error:.0e}" for error in nearer(change, before, noise)]
    ['1e-06', '1e-12']
    """
    falls = np.minimum(relative(change, before), 1)
    found: Array = np.maximum(change * falls, np.minimum(change, noise))
    return found


@dataclass(frozen=True, eq=False)
class Panel:
    """A stretch of a step with a rule of its own.

    Attributes:
        start: Where it begins.
        width: How long it is, a power of 1/2.
        rung: Which of the rules it has.
        known: What is known of the step, its points among that, one row.
        noise: How much of a drop may be rounding, ``(1,)``.
    """

    start: float
    width: float
    rung: int
    known: Samples
    noise: Array

    @property
    def points(self) -> Array:
        """Its points, ``(N,)``."""
        found: Array = self.start + self.width * rules()[self.rung].points
        return found

    @cached_property
    def samples(self) -> Samples:
        """What is known at its points, one row."""
        return self.known.at(np.searchsorted(self.known.u[0], self.points))

    @cached_property
    def fit(self) -> tuple[Array, Array]:
        """Weights of its points, ``(1, N)``, and how much its rule leaves, ``(1,)``."""
        return fitted(rules()[self.rung], self.samples, self.noise)

    @property
    def is_smooth(self) -> bool:
        """Whether its rule explains the values, or the rules converge."""
        falls = self.rung > 1 and self.change <= _FALLS * self.below.change
        return bool(falls or self.fit[1][0] <= EXPLAINED)

    @cached_property
    def shares(self) -> Array:
        """Integral of the shares, ``(b,)``."""
        found: Array = self.width * (rules()[self.rung].weights @ self.samples.shares[0])
        return found

    @cached_property
    def below(self) -> Panel:
        """The same with the rule before."""
        return replace(self, rung=self.rung - 1)

    @cached_property
    def change(self) -> Array:
        """What its rule changed."""
        by_secants = self.rung == 0
        before = with_trends(self.samples).shares[0].sum(0) if by_secants else self.below.shares
        return norm(self.shares - before)

    @property
    def error(self) -> float:
        """How far its integral may be off; where it has a kink, no less than by the secant rule."""
        if not self.is_smooth:
            return max(float(self.change), JUMP * float(with_trends(self.samples).jumps.sum()))
        if self.rung < 2:
            return float(self.change)
        return float(nearer(self.change, self.below.change, self.width * self.noise[0]))

    def next(self) -> list[Panel]:
        """Return what takes its place: the same with the next rule, or two halves."""
        converges = self.rung == 0 or self.change <= _SLOW * self.below.change
        tries = self.width <= _NARROW and self.rung < 2
        if (tries or (self.is_smooth and converges)) and self.rung + 1 < len(rules()):
            return [replace(self, rung=self.rung + 1)]
        half = replace(self, width=self.width / 2, rung=0)
        return [half, replace(half, start=self.start + half.width)]


@dataclass(frozen=True)
class Found:
    """What panels found: all that is known of the step, weights of its points, and the error."""

    samples: Samples
    weights: Array
    error: Array

    @classmethod
    def of(cls, panels: list[Panel], known: Samples, error: float) -> Found:
        """Return the rule that all panels make together."""
        weights = np.zeros_like(known.u)
        for panel in panels:
            weights[0, np.searchsorted(known.u[0], panel.points)] += panel.fit[0][0]
        return cls(known, weights, np.array([error]))


def refine(known: Samples, tolerance: float, noise: Array) -> Generator[Array, Samples, Found]:
    """Halve and climb until all panels together are off by no more than was asked for.

    That ends, too, at a kink, among rounding, and when all points are taken.

    Args:
        known: What is known of the step of one test example, its middle among that, one row.
        tolerance: How far the mean may be off.
        noise: How much of the drop may be rounding, ``(1,)``.

    Yields:
        Points ``(1, k)`` at which to look; what is found there is sent back.
    """
    panels = [Panel(0.0, 1.0, 0, known, noise)]
    while True:
        whole = float(norm(np.sum([panel.shares for panel in panels], axis=0)))
        errors = np.array([panel.error for panel in panels])
        found = Found.of(panels, known, float(relative(errors.sum(), np.array(whole))))
        ahead = _ahead(panels, errors, _REST * tolerance * whole)
        enough = errors.sum() <= max(tolerance * whole, noise[0] / 10)  # rounding is not resolved
        if enough or any(map(_ends, ahead)):
            return found
        new = [each for panel in ahead for each in panel.next()]
        wanted = np.setdiff1d(np.concatenate([panel.points for panel in new]), known.u)
        if known.inside[0] + wanted.size > MOST_IN_PANELS:
            return found
        if wanted.size:
            known = known.with_more((yield wanted))
        panels = [panel for panel in panels if panel not in ahead]
        panels += [replace(panel, known=known) for panel in new]


def _ahead(panels: list[Panel], errors: Array, rest: float) -> list[Panel]:
    """Return the panels that may be off by most, so that the others are not by more than ``rest``.

    If some of them are not smooth, these come first.
    """
    order = np.argsort(-errors)
    others = errors.sum() - errors[order].cumsum()
    chosen = [panels[k] for k in order[: 1 + int((others > rest).sum())]]
    return [panel for panel in chosen if not panel.is_smooth] or chosen


def _ends(panel: Panel) -> bool:
    """Return whether neither climbing nor halving helps: where it has a kink."""
    return not panel.is_smooth and panel.width <= _NARROW and panel.rung > 1
