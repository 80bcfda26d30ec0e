"""Means of test gradients along a step, and their products with the parts of the step.

Where gradients are formed for credits, their products with all parts are one matrix product more;
elsewhere the factors of outer products give them for less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms import products
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from replay.steps.displacement import Vector


@dataclass(frozen=True)
class WeightedGradients:
    """Gradients of some test examples, with the weight that each has in an average.

    Attributes:
        gradients: Of n examples.
        columns: Which of the m they are, ascending, ``(n,)``.
        weights: ``(n,)``; None is 1.
    """

    gradients: PerExample
    columns: Tensor
    weights: Tensor | None = None

    def is_single(self, name: str) -> bool:
        """Return whether gradients of a parameter are single outer products."""
        form = self.gradients.forms.get(name)
        return form is not None and form.factors is not None

    def outer(self, name: str, count: int) -> OuterProducts | None:
        """Return weighted gradients of all m if they are single outer products."""
        form = self.gradients.forms.get(name)
        if form is None or form.factors is None or len(self.columns) < count:
            return None
        deltas, inputs = (factor[:, None] for factor in form.factors)
        if self.weights is not None:
            deltas = deltas * self.weights.to(deltas)[:, None, None]
        return OuterProducts(inputs, deltas, 0, deltas.shape[2])

    def rows(
        self, name: str, start: int, stop: int, role: str | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return weighted gradients of one parameter, and whose, of columns start to stop.

        They may be views; with a role they may be in a workspace, until the next call for it.
        """
        if name not in self.gradients:
            return None
        wanted = (self.columns >= start) & (self.columns < stop)
        if self.weights is not None:
            wanted &= self.weights != 0
        chosen = wanted.nonzero().flatten()
        if len(chosen) == 0:
            return None
        first, last = int(chosen[0]), int(chosen[-1])
        contiguous = last - first + 1 == len(chosen)  # need not be copied
        some = slice(first, last + 1) if contiguous else chosen.to(self.gradients.losses.device)
        found = self.gradients.rows(name, some, role)
        if self.weights is not None:
            found = found * self.weights[chosen].to(found)[:, None]
        return found, self.columns[chosen] - start


def gradient_of(
    mean: Sequence[WeightedGradients], name: str, start: int, stop: int
) -> Tensor | None:
    """Return the sum for one parameter, columns start to stop, ``(stop - start, numel)``."""
    result: Tensor | None = None
    role = "mean gradient" if len(mean) == 1 else None  # else they are needed side by side
    for part in mean:
        found = part.rows(name, start, stop, role)
        if found is None:
            continue
        rows, places = found
        if result is None and len(rows) == stop - start:
            result = rows
            continue
        if result is None:
            result = rows.new_zeros(stop - start, rows.shape[1])
        result = result.index_add(0, places.to(rows.device), rows)
    return result


class Projections:
    """Collects products of mean gradients with vectors.

    Args:
        directions: k vectors by parameter.
        count: m.
        device: Where the gradients are.

    Attributes:
        products: What was found so far, float64 ``(k, m)``.
    """

    def __init__(self, directions: Sequence[Vector], count: int, device: torch.device) -> None:
        self._directions = list(directions)
        self._formed: set[str] = set()
        self._which: list[int] = []
        self._rows = torch.empty(
            0, device="cpu"
        )  # of the last parameter, one of those directions each
        self.products = torch.zeros(len(directions), count, dtype=torch.float64, device=device)

    def add(self, name: str, gradients: Tensor, columns: slice) -> None:
        """Add one parameter's part of some columns, whose gradients are given, ``(n, numel)``."""
        if name not in self._formed:
            self._formed.add(name)
            found = {k: d[name] for k, d in enumerate(self._directions) if name in d}
            self._which = list(found)
            rows = [vector.to(gradients).flatten() for vector in found.values()]
            self._rows = torch.stack(rows) if rows else self._rows
        if self._which:
            self.products[self._which, columns] += self._rows @ gradients.T

    def add_others(self, part: WeightedGradients) -> None:
        """Add the parts of the parameters whose gradients were not given."""
        rest = [
            {name: v for name, v in direction.items() if name not in self._formed}
            for direction in self._directions
        ]
        if any(rest):
            found = products.project(part.gradients, rest)
            weights = 1.0 if part.weights is None else part.weights.to(found)
            self.products[:, part.columns.to(found.device)] += found * weights
