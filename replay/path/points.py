"""Points of a step as its quadrature sees them, and averages of the gradients there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay.path.quadrature.samples import Array, Samples
from replay.path.step_path import Node, StepPath, average


class Points:
    """Nodes and values at some points of a step, each for some test examples.

    Args:
        line: The step.

    Attributes:
        ends: What is known of both ends, for all m test examples.
    """

    def __init__(self, line: StepPath) -> None:
        self._line, self._m = line, len(line.examples)
        self._nodes = {float(u): line.end(u) for u in (0, 1)}
        self._values = {float(u): value for u, value in enumerate(line.values)}
        columns = np.arange(self._m)
        self.ends = self._samples(np.tile([0.0, 1.0], (self._m, 1)), columns)

    def look(self, u: Array, columns: NDArray[np.int64]) -> Samples:
        """Return what is known at points ``(n, k)`` for n test examples.

        Gradients are taken where ``u`` is inside, at all points in one round.
        """
        inside = np.unique(u[(u > 0) & (u < 1)])
        wanted = {float(x): self._missing(float(x), columns[(u == x).any(1)]) for x in inside}
        wanted = {x: some for x, some in wanted.items() if some}
        for x, found in self._line.round(wanted).items():
            self._add(x, *found)
        return self._samples(u, columns)

    def average(self, u: Array, weights: Array) -> Node:
        """Return the average of nodes with weights ``(m, N)`` at points ``(m, N)``."""
        points, places = np.unique(u, return_inverse=True)
        table = np.zeros((len(points), self._m))
        np.add.at(table, (places.reshape(u.shape), np.arange(self._m)[:, None]), weights)
        used = table.any(1)
        nodes = [self._nodes[float(x)] for x in points[used]]
        return average(torch.from_numpy(table[used]), nodes)

    def _missing(self, u: float, columns: NDArray[np.int64]) -> list[int]:
        """Return those of some test examples for which nothing is known at a point."""
        if u in self._nodes:
            columns = columns[self._nodes[u].weights[u].numpy()[columns] == 0]
        found: list[int] = np.sort(columns).tolist()
        return found

    def _add(self, u: float, columns: list[int], node: Node, value: Tensor) -> None:
        """Add what was found at a point for some test examples; others have 0 there."""
        if len(columns) == self._m:
            self._nodes[u], self._values[u] = node, value
            return
        place = torch.tensor(columns, device="cpu")
        if u not in self._nodes:
            rows, parts = len(node.shares), len(node.parts)
            zeros = torch.zeros(rows + parts + 2, self._m, dtype=torch.float64, device="cpu")
            shares, other, norms, values = torch.split(zeros, [rows, parts, 1, 1])
            weights = {u: torch.zeros_like(norms[0])}
            self._nodes[u], self._values[u] = Node(shares, other, norms[0], weights), values[0]
        known = self._nodes[u]
        known.shares[:, place], known.parts[:, place] = node.shares, node.parts
        known.norms[place], known.weights[u][place] = node.norms, 1.0
        self._values[u][place] = value

    def _samples(self, u: Array, columns: NDArray[np.int64]) -> Samples:
        points, places = np.unique(u, return_inverse=True)
        nodes, rows = [self._nodes[float(x)] for x in points], columns[:, None]
        places = places.reshape(u.shape)
        values = np.stack([self._values[float(x)].numpy() for x in points])
        slopes = np.stack([node.slope.numpy() for node in nodes])
        shares = np.stack([node.shares.numpy().T for node in nodes])
        return Samples(u, values[places, rows], slopes[places, rows], shares[places, rows])
