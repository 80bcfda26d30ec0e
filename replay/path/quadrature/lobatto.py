r"""Gauss-Lobatto rules that contain each other: 1, 3, 7 and 15 points between the ends.

The first two are those of Gauss and Lobatto with 3 and 5 points. Each later one adds the points
that make it exact for the highest degree, as Kronrod and Patterson did for Gauss's rules: 13 and
25, where Clenshaw and Curtis's, which contain each other too, reach 9 and 17.

Source: T. N. L. Patterson, The optimum addition of points to quadrature formulae, Math. Comp. 22
(1968) 847; W. Gander, W. Gautschi, Adaptive quadrature revisited, BIT 40 (2000) 84.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre

from replay.path.quadrature.samples import Array

_RUNGS = 4


@dataclass(frozen=True)
class Rule:
    """A rule on [0, 1].

    Attributes:
        points: Ascending, both ends among them, ``(n,)``.
        weights: Their sum is 1, ``(n,)``.
        new: The points that the rule before does not have; the first has the ends.
    """

    points: Array
    weights: Array
    new: Array


@cache
def rules() -> tuple[Rule, ...]:
    """Return the rules, each of which has all points of the one before.

    >>> [len(rule.points) - 2 for rule in rules()]
    [1, 3, 7, 15]
    >>> rules()[1].weights.round(6).tolist()  # 1/20, 49/180, 16/45
    [0.05, 0.272222, 0.355556, 0.272222, 0.05]
    >>> def is_exact(rule, degree):
    ...     return bool(abs(rule.weights @ rule.points**degree - 1 / (degree + 1)) < 1e-14)
    >>> [is_exact(rule, degree) for rule, degree in zip(rules(), (3, 7, 13, 25))]
    [True, True, True, True]
    >>> all(set(a.points) <= set(b.points) for a, b in zip(rules(), rules()[1:]))
    True
    """
    points, new = np.array([-1.0, 0.0, 1.0]), np.zeros(1)
    found: list[Rule] = []
    while True:
        found.append(Rule((1 + points) / 2, _weights(points) / 2, (1 + new) / 2))
        if len(found) == _RUNGS:
            return tuple(found)
        new = _added(points)
        points = np.sort(np.concatenate((points, new)))


def _weights(points: Array) -> Array:
    """Return the weights that integrate every polynomial through the points, on [-1, 1]."""
    whole = np.zeros(len(points))
    whole[0] = 2
    table = legendre.legvander(points, len(points) - 1)
    return np.asarray(np.linalg.solve(table.T, whole), dtype=np.float64)


def _added(points: Array) -> Array:
    """Return one point for each interval: the roots of what is orthogonal to all less.

    Orthogonal with the weight ``Π_k (x - points[k])``.
    """
    count = len(points) - 1
    x, w = legendre.leggauss(2 * len(points))
    weight = w * np.prod(x[:, None] - points, axis=1) * 2.0**count  # of order 1
    values = legendre.legvander(x, count)
    products = values[:, :count].T @ (weight[:, None] * values)
    coefficients = np.linalg.solve(products[:, :count], -products[:, count])
    roots = np.sort(legendre.legroots([*coefficients, 1.0]))
    return np.asarray((roots - roots[::-1]) / 2, dtype=np.float64)
