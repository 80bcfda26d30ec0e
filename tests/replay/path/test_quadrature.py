"""Rules of the mean along a step and the choice between them, against integrals in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from replay.path.quadrature.ladder import MOST, climb
from replay.path.quadrature.lobatto import rules
from replay.path.quadrature.panels import MOST_IN_PANELS
from replay.path.quadrature.samples import Samples, norm
from replay.path.quadrature.secant import secant, with_trends

B = 6


class Kinked:
    """Shares ``a + b u + c sin(u)``, and at every kink κ another jump; their sum is the slope.

    Args:
        kinks: For each of m test examples the positions of its kinks.
        bend: How large c is.
    """

    def __init__(self, kinks, *, bend=0.0, jump=0.03):
        self.random = np.random.default_rng(len(kinks))
        self.kinks = kinks
        self.a, self.b, self.c = self.draw(1.0), self.draw(0.1), self.draw(bend)
        self.jumps = [self.random.normal(size=(len(some), B)) * jump for some in kinks]
        self.asked = []

    def draw(self, size):
        return size * (self.random.normal(size=(len(self.kinks), B)) + 0.5)

    def shares(self, u, j):
        """Return the shares of test example j at points, ``(k, B)``."""
        u = np.asarray(u)[:, None]
        smooth = self.a[j] + self.b[j] * u + self.c[j] * np.sin(u)
        return smooth + sum(
            jump * (u > at) for at, jump in zip(self.kinks[j], self.jumps[j], strict=True)
        )

    def integral(self, u, j):
        """Return their integrals from 0 to points."""
        u = np.asarray(u)[:, None]
        smooth = self.a[j] * u + self.b[j] * u**2 / 2 + self.c[j] * (1 - np.cos(u))
        return smooth + sum(
            jump * np.maximum(u - at, 0)
            for at, jump in zip(self.kinks[j], self.jumps[j], strict=True)
        )

    @property
    def exact(self):
        return np.concatenate([self.integral([1.0], j) for j in range(len(self.kinks))])

    def look(self, u, columns):
        self.asked.append((u, columns))
        shares = np.stack([self.shares(row, j) for row, j in zip(u, columns, strict=True)])
        values = -np.stack([self.integral(row, j) for row, j in zip(u, columns, strict=True)])
        return Samples(u, values.sum(-1), shares.sum(-1), shares)

    def at(self, *u):
        """Return all samples at the same points."""
        return self.look(np.tile(u, (len(self.kinks), 1)), np.arange(len(self.kinks)))

    def climbed(self, tolerance):
        """Return the mean, its estimated and its true error, and how many points it took."""
        count = len(self.kinks)
        found = climb(self.at(0.0, 1.0), self.look, tolerance, np.full(count, 1e-14))
        shares = np.stack(
            [
                w @ self.shares(u, j)
                for j, (u, w) in enumerate(zip(found.u, found.weights, strict=True))
            ]
        )
        error = norm(shares - self.exact) / norm(self.exact)
        return shares, found.error, error, found.gradients - 2


class Steep(Kinked):
    """Shares ``a + b u + c tanh((u − at) / width)``: smooth, though a first look cannot see it.

    Args:
        places: For each test example ``at`` and ``width``.
    """

    def __init__(self, places, *, height=1.0):
        super().__init__([[]] * len(places), bend=height)
        self.places = places

    def shares(self, u, j):
        """Return the shares of test example j at points, ``(k, B)``."""
        (at, width), u = self.places[j], np.asarray(u)[:, None]
        return self.a[j] + self.b[j] * u + self.c[j] * np.tanh((u - at) / width)

    def integral(self, u, j):
        """Return their integrals from 0 to points."""
        (at, width), u = self.places[j], np.asarray(u)[:, None]
        rise = np.logaddexp((u - at) / width, (at - u) / width) - np.logaddexp(
            -at / width, at / width
        )
        return self.a[j] * u + self.b[j] * u**2 / 2 + self.c[j] * width * rise


def test_lobatto_rules_converge_on_what_is_smooth():
    errors = [abs(rule.weights @ np.exp(2 * rule.points) - np.expm1(2.0) / 2) for rule in rules()]
    assert [
        error < limit for error, limit in zip(errors, (1e-1, 1e-5, 1e-14, 1e-14), strict=True)
    ] == [True] * 4
    assert all((rule.weights > 0).all() for rule in rules())


@pytest.mark.parametrize("kink", [0.03, 0.49, 0.5, 0.51, 0.98])
def test_the_secant_rule_is_exact_across_one_jump(kink):
    known = Kinked([[kink]])
    known.b[:] = 0
    samples = known.at(0.0, 1.0)
    theta = secant(samples)
    assert theta.item() == pytest.approx(kink)
    mean = theta[..., None] * samples.shares[:, :1] + (1 - theta)[..., None] * samples.shares[:, 1:]
    assert np.allclose(mean[:, 0], known.exact, rtol=1e-12)


@pytest.mark.parametrize("kink", [0.03, 0.2, 0.49, 0.51, 0.7, 0.98])
def test_with_a_trend_it_is_exact_across_one_jump_of_what_is_linear(kink):
    known = Kinked([[kink]])
    samples = known.at(0.0, 0.5, 1.0)
    found = with_trends(samples)
    assert np.allclose(found.shares.sum(1), known.exact, rtol=1e-12)
    assert np.allclose(found.weights @ samples.shares[0], known.exact, rtol=1e-12)
    jump = found.jumps[0]
    assert jump.max() == pytest.approx(norm(known.jumps[0][0]) / 2)  # half as long as the step


@pytest.mark.parametrize(("tolerance", "bend", "most"), [(1e-3, 0.1, 1), (1e-9, 0.1, 7)])
def test_smooth_steps_take_few_points(tolerance, bend, most):
    known = Kinked([[]] * 20, bend=bend)
    _, estimated, error, inside = known.climbed(tolerance)
    assert (error <= np.maximum(estimated, 1e-14)).all()
    assert (estimated <= tolerance).all()
    assert np.median(inside) <= most


STEEP = [(at, width) for at in (0.1, 0.37, 0.5, 0.73) for width in (0.2, 0.15, 0.1, 0.02)]


@pytest.mark.parametrize(("tolerance", "most"), [(1e-3, 30), (1e-6, 64), (1e-9, 72)])
def test_steep_but_smooth_steps_meet_what_is_asked(tolerance, most):
    """A verdict taken from the first points is revised; the steepest say what they miss."""
    known = Steep(STEEP)
    _, estimated, error, inside = known.climbed(tolerance)
    within, steepest = estimated <= tolerance, np.array([width < 0.1 for _, width in STEEP])
    assert (within | steepest).all()
    assert (error <= np.maximum(estimated, 1e-14)).all()
    assert np.median(inside[~steepest]) <= most
    assert inside.max() <= MOST_IN_PANELS


def test_what_all_points_do_not_resolve_says_so():
    known = Steep([(0.3, 2e-3), (0.3, 0.5)])
    _, estimated, error, inside = known.climbed(1e-12)
    assert estimated[0] > 1e-12
    assert error[0] <= estimated[0]
    assert inside[0] <= MOST_IN_PANELS
    assert estimated[1] <= 1e-12


def test_rounding_is_neither_halved_nor_taken_for_nothing():
    """Where the last digits are noise, 1e-12 is not met, and few points find that out."""
    known = Steep([(0.5, 0.5)] * 8)
    exactly = known.shares
    known.shares = lambda u, j: exactly(u, j).astype(np.float32) * 1.0
    found = climb(known.at(0.0, 1.0), known.look, 1e-12, np.full(8, 1e-6))
    assert (found.error > 1e-12).all()
    assert found.gradients.max() <= 2 + 31


@pytest.mark.parametrize(("rate", "missed", "points"), [(0.9, 0.01, 5), (4.0, 0.05, 20)])
def test_kinked_steps_are_off_by_less_than_estimated_or_say_so(rate, missed, points):
    """Estimates are no bounds: with 4 kinks a step, 4 % of those that say so are not within."""
    random = np.random.default_rng(0)
    known = Kinked([random.random(count) for count in random.poisson(rate, 300)], bend=0.01)
    _, estimated, error, inside = known.climbed(1e-3)
    within = estimated <= 1e-3
    assert (error[within] > 1e-3).mean() <= missed
    assert error[within].max() <= 3e-3
    assert np.median(error) < 1e-4
    assert inside.max() <= MOST_IN_PANELS
    assert (inside[~within] >= MOST).all()
    assert inside.mean() < points


def test_each_test_example_is_decided_alone():
    random = np.random.default_rng(1)
    kinks = [random.random(count) for count in (0, 1, 2, 5, 0, 9)]
    known = Kinked(kinks, bend=0.05)
    shares, estimated, _, inside = known.climbed(1e-4)
    for j in range(len(kinks)):
        one = Kinked([kinks[j]])
        one.a, one.b, one.c = (table[j : j + 1] for table in (known.a, known.b, known.c))
        one.jumps = [known.jumps[j]]
        own, own_estimated, _, own_inside = one.climbed(1e-4)
        assert np.allclose(own[0], shares[j], rtol=1e-12)
        assert own_estimated[0] == pytest.approx(estimated[j])
        assert own_inside[0] == inside[j]


def test_no_point_is_asked_for_twice():
    random = np.random.default_rng(2)
    known = Kinked([random.random(count) for count in random.poisson(3, 30)])
    known.climbed(1e-5)
    for j in range(30):
        points = [
            u
            for rows, columns in known.asked
            for u in rows[np.asarray(columns) == j].flatten()
            if 0 < u < 1
        ]
        assert len(points) == len(set(points)) <= MOST_IN_PANELS
    assert len(known.asked) <= 20  # rounds


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_ends(value):
    known = Kinked([[0.3], [0.6]])
    known.a[0] = value
    with np.errstate(invalid="ignore"):
        _, estimated, error, _ = known.climbed(1e-3)
    assert np.isnan(estimated[0])
    assert estimated[1] <= 1e-3
    assert error[1] <= 1e-3


def test_nothing_to_divide_is_no_error():
    known = Kinked([[0.3]], jump=0.0)
    known.a[:] = known.b[:] = 0
    found = climb(known.at(0.0, 1.0), known.look, 1e-3, np.zeros(1))
    assert found.error == [0]
    assert found.gradients == [3]
