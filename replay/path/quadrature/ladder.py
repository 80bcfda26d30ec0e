r"""Which rule a step of one test example takes, and how far its mean may be off.

1. *First look*: one point, half way. Where Simpson's rule explains the values, ``q`` is smooth.
2. *Smooth*: up the Gauss-Lobatto rules that contain each other, to 15 points between the ends.
3. *Not smooth*: the secant rule with trends; intervals that may hold too much of the error are
   halved, until all together hold less than was asked for, or 15 points are taken.
4. *Neither was enough*: the verdict is taken again for parts of the step (``panels``). Each is
   halved or climbs the Lobatto rules, to 127 points. At a kink that ends.

A Lobatto rule is taken to be off by what it differs from the one before, and from the third on by
as often less as that is less than the difference before. An interval of the secant
rule may be off by the change when it was made by halving, but by no less than a tenth and no more
than a quarter of what the shares may jump in it. Both are estimates: kinks between two points that
undo each other are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from replay.path.quadrature.lobatto import rules
from replay.path.quadrature.panels import EXPLAINED, MOST_IN_PANELS, Found, fitted, nearer, refine
from replay.path.quadrature.samples import Array, Samples, norm, relative
from replay.path.quadrature.secant import JUMP, Integrals, with_trends

Columns = NDArray[np.int64]
Look = Callable[[Array, Columns], Samples]

MOST = 15  # points between the ends
_PERHAPS = 0.15  # what two more points may show to be smooth may leave that much of the values
_FINE = 1e-4  # what halving does not reach soon: two more points are spent to be sure
_LEAST, _REST = 0.1, 0.2


@dataclass(frozen=True)
class Mean:
    """Means along a step, one for each of m test examples.

    Attributes:
        u: Points, ``(m, 129)``; the last may be repeated.
        weights: Their weights, ``(m, 129)``.
        error: How far the mean of the shares may be off, relative to its norm, ``(m,)``.
        tolerance: How far it may be off.
        unmet: What is known of the test examples whose means may be off by more, one row each.
    """

    u: Array
    weights: Array
    error: Array
    tolerance: float = np.inf
    unmet: dict[int, Samples] = field(init=False, default_factory=dict)

    @classmethod
    def blank(cls, count: int, tolerance: float) -> Mean:
        """Return means that are not known yet."""
        size = count, MOST_IN_PANELS + 2
        return cls(np.ones(size), np.zeros(size), np.full(count, np.nan), tolerance)

    @property
    def gradients(self) -> Columns:
        """How many gradients were taken, those at the ends among them, ``(m,)``."""
        found: Columns = 2 + ((self.u > 0) & (self.u < 1)).sum(1)
        return found

    def put(self, columns: Columns, samples: Samples, weights: Array, error: Array) -> None:
        """Put in those of some test examples."""
        points = samples.u.shape[1]
        self.u[columns, :points], self.weights[columns, :points] = samples.u, weights
        self.error[columns] = error
        for row in np.flatnonzero(error > self.tolerance):
            self.unmet[int(columns[row])] = samples.row(int(row))

    def weights_at(self, column: int, samples: Samples) -> Array:
        """Return the weights of one test example among more points than they were put in for."""
        found = np.zeros_like(samples.u)
        np.add.at(found[0], np.searchsorted(samples.u[0], self.u[column]), self.weights[column])
        return found


def climb(ends: Samples, look: Look, tolerance: float, noise: Array) -> Mean:
    """Return the means along a step of some test examples.

    Args:
        ends: What is known of both ends.
        look: Called with points, ``(n, k)``, and for which n of the test examples; where a point
            is 1, nothing is to be done.
        tolerance: How far the mean may be off.
        noise: How much of the drop may be rounding, ``(m,)``.

    >>> def look(u, columns):  # φ falls by 1 + u, and by 3 more from the kink at 2/3 on
    ...     slopes = 1 + u + 3 * (u > 2 / 3)
    ...     values = 2.5 - u - u**2 / 2 - 3 * np.maximum(u - 2 / 3, 0)
    ...     return Samples(u, values, slopes, slopes[..., None])
    >>> found = climb(look(np.array([[0.0, 1.0]]), [0]), look, 1e-3, np.zeros(1))
    >>> slopes = look(found.u, [0]).slopes
    >>> round(float((found.weights * slopes).sum()), 12), bool(found.error[0] <= 1e-3)
    (2.5, True)
    """
    result = Mean.blank(len(ends.u), tolerance)
    rough = list(_smooth(ends, look, tolerance, noise, result))
    if rough:
        columns, samples = zip(*rough, strict=True)
        _halve(np.concatenate(columns), Samples.joined(samples), look, tolerance, result)
    _in_panels(look, tolerance, noise, result)
    return result


def _smooth(
    ends: Samples, look: Look, tolerance: float, noise: Array, result: Mean
) -> Iterator[tuple[Columns, Samples]]:
    """Climb the Lobatto rules; yield the test examples whose steps are not smooth."""
    columns, samples, before, last = (
        np.arange(len(ends.u)),
        ends,
        None,
        np.full(len(ends.u), np.inf),
    )
    for rung, rule in enumerate(rules()):
        samples = samples.with_more(look(np.tile(rule.new, (len(columns), 1)), columns))
        mean = rule.weights @ samples.shares
        if before is None:
            before = with_trends(samples).shares.sum(1)
        change = norm(mean - before)
        error = relative(nearer(change, last, noise[columns]) if rung > 1 else change, norm(mean))
        weights, left = fitted(rule, samples, noise[columns])
        smooth = left <= EXPLAINED
        done = smooth & ((error <= tolerance) | (rung + 1 == len(rules())))
        result.put(columns[done], samples.of(done), weights[done], error[done])
        perhaps = np.inf if tolerance <= _FINE else _PERHAPS
        goes_on = ~done & (smooth | ((rung == 0) & (left <= perhaps)))
        if (rough := ~done & ~goes_on).any():
            yield columns[rough], samples.of(rough)
        columns, samples, before = columns[goes_on], samples.of(goes_on), mean[goes_on]
        last = change[goes_on]
        if len(columns) == 0:
            return


def _halve(columns: Columns, samples: Samples, look: Look, tolerance: float, result: Mean) -> None:
    """Halve intervals until what they may hold of the error is small enough."""
    found = with_trends(samples)
    errors = JUMP * found.jumps
    while True:
        allowed, room = tolerance * norm(found.shares.sum(1)), MOST - samples.inside
        error = tolerance * relative(errors.cumsum(1)[:, -1], allowed)
        goes_on = (error > tolerance) & (room > 0)
        done = ~goes_on
        result.put(columns[done], samples.of(done), found.weights[done], error[done])
        if done.all():
            return
        columns, samples, found = columns[goes_on], samples.of(goes_on), found.of(goes_on)
        errors, allowed, room = errors[goes_on], allowed[goes_on, None], room[goes_on, None]
        chosen = _largest(errors, _REST * allowed, room)
        points = _halves(samples, found.kinks, chosen, _LEAST / 2 * found.jumps > allowed)
        points = np.sort(np.where((points < 1).cumsum(1) <= room, points, 1.0))
        more = look(points[:, : (points < 1).sum(1).max()], columns)
        samples, found, errors = _finer(samples, found, errors, chosen, more)


def _finer(
    old: Samples, before: Integrals, errors: Array, chosen: NDArray[np.bool_], more: Samples
) -> tuple[Samples, Integrals, Array]:
    """Return all points, integrals between them, and what each may hold of the error."""
    samples = old.with_more(more)
    found = with_trends(samples)
    within = (samples.u[:, :-1, None] >= old.u[:, None, 1:-1]).sum(2)  # which of the old ones
    rows = np.arange(len(within))[:, None]
    halves = np.zeros_like(before.shares)
    np.add.at(halves, (rows, within), found.shares)  # one after the other, however many rows
    change = norm(before.shares - halves)
    halved = change[rows, within].clip(_LEAST * found.jumps, JUMP * found.jumps)
    kept = np.where(samples.widths > 0, errors[rows, within], 0.0)
    return samples, found, np.where(chosen[rows, within], halved, kept)


def _largest(errors: Array, rest: Array, room: Columns) -> NDArray[np.bool_]:
    """Choose the largest errors of each row, so that the others are not more than ``rest``."""
    order = np.argsort(-errors, axis=1)
    falling = np.take_along_axis(errors, order, axis=1)
    sums = np.cumsum(falling, axis=1)
    others = sums[:, -1:] - sums
    count = np.minimum(1 + (others > rest).sum(1, keepdims=True), room)
    found: NDArray[np.bool_] = (np.argsort(order, axis=1) < count) & (errors > 0)
    return found


def _halves(
    samples: Samples, kinks: Array, chosen: NDArray[np.bool_], twice: NDArray[np.bool_]
) -> Array:
    """Return points that halve intervals, and again the halves with kinks; 1 where there is none.

    The second halving would follow anyway. It is taken along to save a round.
    """
    left, right = samples.u[:, :-1], samples.u[:, 1:]
    half = _half(left, right)
    below = kinks < half
    quarter = _half(np.where(below, left, half), np.where(below, half, right))
    return np.where(np.hstack((chosen, chosen & twice)), np.hstack((half, quarter)), 1.0)


def _half(left: Array, right: Array) -> Array:
    """Return a point near the middle of an interval that others are likely to have, too.

    It is a multiple of the largest power of 2 that is no more than half of the interval.

    >>> _half(np.array([0.5, 0.17267316]), np.array([0.75, 0.5])).tolist()
    [0.625, 0.375]
    """
    h = right - left
    grid = 2.0 ** np.floor(np.log2(np.where(h > 0, h, 1.0) / 2))
    found: Array = np.round((left + right) / 2 / grid) * grid
    return found


def _in_panels(look: Look, tolerance: float, noise: Array, result: Mean) -> None:
    """Halve and climb, each test example on its own, those whose means may be off by more."""
    jobs = {z: refine(known, tolerance, noise[z : z + 1]) for z, known in result.unmet.items()}
    more: dict[int, Samples] = {}
    while jobs:
        wanted: dict[int, Array] = {}
        for z, job in jobs.items():
            try:
                wanted[z] = job.send(more[z]) if more else next(job)
            except StopIteration as stop:
                _put(z, stop.value, result)
        jobs = {z: jobs[z] for z in wanted}
        more = _looked_at(look, wanted) if wanted else {}


def _looked_at(look: Look, wanted: dict[int, Array]) -> dict[int, Samples]:
    """Look at other points for each test example."""
    points = np.ones((len(wanted), max(map(len, wanted.values()))))
    for row, some in zip(points, wanted.values(), strict=True):
        row[: len(some)] = some
    found = look(points, np.array(list(wanted)))
    return {z: found.row(k) for k, z in enumerate(wanted)}


def _put(column: int, found: Found, result: Mean) -> None:
    """Put in what panels found, or only that they looked, where what is known is better."""
    weights, error = found.weights, found.error
    if not error < result.error[column]:
        weights, error = result.weights_at(column, found.samples), result.error[[column]]
    result.put(np.array([column]), found.samples, weights, error)
