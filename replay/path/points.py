"""Points of some steps as their quadrature sees them, and averages of the gradients there.

A row is a step and a test example: ``m`` rows of each step, one step after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay.path.bundle import Bundle, Bundles, Found, slot_of
from replay.path.quadrature.samples import Array, Samples
from replay.path.step_path import Node, StepPath

Rows = NDArray[np.int64]
Pair = tuple[int, float]  # a step and a point


class Points:
    """Nodes and values at some points of some steps, each for some test examples.

    Args:
        lines: The steps; their batches are of one size.
        bundles: What takes some of them together.

    Attributes:
        ends: What is known of both ends, for all rows.
    """

    def __init__(self, lines: Sequence[StepPath], bundles: Bundles) -> None:
        self._lines, self._m = lines, len(lines[0].examples)
        self._place: dict[Pair, int] = {}
        self._known = np.zeros((0, self._m), dtype=bool)
        b, k = len(lines[0].trained.ids), len(lines[0].parts)
        self._values, self._norms = np.zeros((0, self._m)), np.zeros((0, self._m))
        self._shares, self._parts = np.zeros((0, self._m, b)), np.zeros((0, self._m, k))
        self._bundles = {i: bundles[id(one)] for i, one in enumerate(lines) if id(one) in bundles}
        every = list(range(self._m))
        for i, line in enumerate(lines):
            for u in (0, 1):
                node = line.end(u)
                self._put(
                    (i, float(u)), every, (node.shares, node.parts, node.norms), line.values[u]
                )
        rows = np.arange(len(lines) * self._m)
        self.ends = self._samples(np.tile([0.0, 1.0], (len(rows), 1)), rows)

    def look(self, u: Array, rows: Rows) -> Samples:
        """Return what is known at points ``(n, k)`` for n rows.

        Gradients are taken where ``u`` is inside, at all points in one round.
        """
        steps, columns = np.divmod(rows, self._m)
        wanted: dict[Pair, list[int]] = {}
        inside = (u > 0) & (u < 1)
        for row, at in zip(*inside.nonzero(), strict=True):
            pair = int(steps[row]), float(u[row, at])
            place, column = self._place.get(pair), int(columns[row])
            if place is None or not self._known[place, column]:
                wanted.setdefault(pair, []).append(column)
        if wanted:
            self._look(dict(sorted(wanted.items())))
        return self._samples(u, rows)

    def average(self, u: Array, weights: Array) -> list[Node]:
        """Return each step's average of nodes, with weights ``(rows, N)`` at points ``u``."""
        rows = np.arange(len(u))
        order = np.argsort(weights == 0, axis=1, kind="stable")
        order = order[:, : max(1, int((weights != 0).sum(1).max()))]
        u, weights = u[rows[:, None], order], weights[rows[:, None], order]
        u = np.where(weights == 0, 0.0, u)
        places, columns = self._places(u, rows), (rows % self._m)[:, None]
        shares, parts = (
            (weights[..., None] * table[places, columns]).sum(1)
            for table in (self._shares, self._parts)
        )
        norms = (weights * self._norms[places, columns])[..., None].sum(1)[:, 0]
        return [
            Node(
                torch.from_numpy(shares[own].T),
                torch.from_numpy(parts[own].T),
                torch.from_numpy(norms[own]),
                self._weights(u[own], weights[own]),
            )
            for own in (slice(k, k + self._m) for k in range(0, len(rows), self._m))
        ]

    def _weights(self, u: Array, weights: Array) -> dict[float, Tensor]:
        """Return the weights ``(m,)`` of each point of one step."""
        points, places = np.unique(u, return_inverse=True)
        table = np.zeros((len(points), self._m))
        np.add.at(table, (places.reshape(u.shape), np.arange(self._m)[:, None]), weights)
        return {
            float(x): torch.from_numpy(w) for x, w in zip(points, table, strict=True) if w.any()
        }

    def _look(self, wanted: dict[Pair, list[int]]) -> None:
        """Find what is not known, some steps and points together where that fits."""
        apart: dict[Bundle, dict[int, list[float]]] = {}
        for i, u in wanted:
            if i in self._bundles:
                points = apart.setdefault(self._bundles[i], {})
                points.setdefault(slot_of(self._lines[i]), []).append(u)
        found: dict[Pair, Found] = {}
        for bundle, points in apart.items():
            found |= bundle.round(points)
        every = list(range(self._m))
        for (i, u), columns in wanted.items():
            one = found.get((slot_of(self._lines[i]), u))
            if one is None:
                node, values = self._lines[i].round(u, sorted(columns))
                self._put((i, u), sorted(columns), (node.shares, node.parts, node.norms), values)
                continue
            if one.gradients is not None:
                self._lines[i].keep(u, one.gradients, every)
            self._put((i, u), every, one.tables, one.values)

    def _put(
        self, pair: Pair, columns: list[int], found: tuple[Tensor, Tensor, Tensor], values: Tensor
    ) -> None:
        """Put in what was found at a point for some test examples; others have 0 there."""
        place = self._place.get(pair)
        if place is None:
            place = self._place[pair] = len(self._place)
            if place >= len(self._known):
                self._grow()
        self._known[place, columns] = True
        shares, parts, norms = found
        self._shares[place, columns] = shares.numpy().T
        self._parts[place, columns] = parts.numpy().T
        self._norms[place, columns] = norms.numpy()
        self._values[place, columns] = values.cpu().numpy()

    def _grow(self) -> None:
        for name in ("_known", "_values", "_norms", "_shares", "_parts"):
            table = getattr(self, name)
            more = np.zeros((max(8, len(table)), *table.shape[1:]), dtype=table.dtype)
            setattr(self, name, np.concatenate((table, more)))

    def _places(self, u: Array, rows: Rows) -> Rows:
        """Return where what is known of points ``(n, k)`` of n rows lies."""
        points, at = np.unique(u, return_inverse=True)
        pairs, back = np.unique(
            (rows // self._m)[:, None] * len(points) + at.reshape(u.shape), return_inverse=True
        )
        own = [
            self._place[int(pair // len(points)), float(points[pair % len(points)])]
            for pair in pairs
        ]
        found: Rows = np.array(own)[back.reshape(u.shape)]
        return found

    def _samples(self, u: Array, rows: Rows) -> Samples:
        places, columns = self._places(u, rows), (rows % self._m)[:, None]
        slopes = self._parts[places, columns].sum(2)
        values, shares = self._values[places, columns], self._shares[places, columns]
        return Samples(u, values, slopes, shares)
