r"""Where the examples lie in every result of a graph, by its operations alone, whatever data say.

A layout that is proven on one pass need not hold for the next: a first batch that happens to be
in order (sorted by length, routed to experts in turn, packed in equal lengths) proves too much. So
layouts are derived once more without any number: from the losses, whose dimension is the
examples', back through operations that are known to keep them apart (see ``operations``). A plan of
which all layouts are found like this is *steady*: it holds for every pass of the same graph. Any
other one is proven at every pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from replay.gradients.operations.dimensions import Seen, Shape, broadcast
from replay.gradients.operations.graph import Graph
from replay.gradients.operations.table import CUTS, JOINS, RESHAPES, RULES, recorded
from replay.gradients.operations.views import Node, shape_of
from replay.gradients.proof.forward_pass import Chosen, Pass


@dataclass(frozen=True)
class Spread:
    """Entry e of a flat result, whatever it moves, moves the loss of example ``e // inner % n``."""

    inner: int


@dataclass(frozen=True)
class One:
    """All entries of a result move one example's loss."""

    example: int


Place = Spread | One | None  # None: any entry may move any loss


def is_steady(found: Pass, ways: Chosen) -> bool:
    """Return whether what was proven of a pass holds for all passes of the same graph."""
    n = len(found.losses)
    if n < 2 or not ways:
        return True
    where = places(found.graph, n)
    for some in ways.values():
        for reader, choice in some:
            layout = choice.layout
            seen = reader.shape or shape_of(reader.node)
            inner = layout.inner or math.prod(seen[: reader.leading]) // (n * layout.outer)
            expected = Spread(inner * math.prod(seen[reader.leading :]))
            if where.get((reader.node, 0)) != expected:
                return False
    return True


def places(graph: Graph, n: int) -> dict[tuple[Node, int], Place]:
    """Return where n examples lie in every result, by node and number of output."""
    found: dict[tuple[Node, int], Place] = {graph.root: Spread(1)}
    for node in graph.ordered():
        given = [None if child is None else shape_of(child, k) for child, k in node.next_functions]
        name, values = node.name(), recorded(node, node.name(), n)
        if values is None:  # as if it were not listed
            name, values = "", ()
        for output in range(len(node._input_metadata)):
            made = shape_of(node, output)
            if (node, output) not in found or 0 in made:  # nothing leads to it, or it is empty
                continue
            one = _Operation(name, values, output, made, given, n)
            for slot, edge in enumerate(node.next_functions):
                if edge[0] is not None:
                    place = one.towards(slot, found[node, output])
                    found[edge] = place if found.get(edge, place) == place else None
    return found


@dataclass(frozen=True)
class _Operation:
    """One result of one node, of shape ``made``, and the shapes of its operands."""

    name: str
    values: tuple[Any, ...]
    output: int
    made: Shape
    given: list[Shape | None]
    n: int

    def towards(self, slot: int, place: Place) -> Place:
        """Return where the examples lie in an operand."""
        given = self.given[slot]
        if place is None or given is None:
            return None
        if isinstance(place, One):
            return self._gathered(place, given)
        if self.name in RESHAPES:
            return place
        rule, located = RULES.get(self.name), _located(place.inner, self.made, self.n)
        if rule is broadcast and given == self.made:
            return place
        if located is None:
            return None
        if self.name in CUTS:
            return self._longer(given, *located)
        if self.name in JOINS:
            return self._shorter(slot, given, *located)
        if rule is None:
            return None
        step = Seen(self.values, self.output, slot, located[0], self.made, given, self.n)
        return self._kept(rule(step), given, *located)

    def _kept(self, target: int | None, given: Shape, dim: int, offset: int) -> Place:
        """Return the place in a dimension of the operand that is the result's."""
        if target is None or not 0 <= target < len(given) or given[target] != self.made[dim]:
            return None
        return Spread(offset * math.prod(given[target + 1 :]))

    def _gathered(self, place: One, given: Shape) -> Place:
        """Return one example's place; of a slice, in the order of the examples if they have one."""
        if self.name not in CUTS:
            return place
        cut = CUTS[self.name](self.values, self.output, self.made, given)
        each, rest = divmod(given[cut.dim], self.n)
        if rest or not each or cut.owner(each) != place.example:
            return place
        return Spread(each * math.prod(given[cut.dim + 1 :]))

    def _longer(self, given: Shape, dim: int, offset: int) -> Place:
        """Return the place in what the result is a slice of."""
        cut = CUTS[self.name](self.values, self.output, self.made, given)
        target = dim + (cut.single and dim >= cut.dim)
        if target != cut.dim:
            return self._kept(target, given, dim, offset)
        each = offset * self.n  # in the same dimension: all examples, some times over
        if cut.start is None or cut.start % each or given[target] % each:
            return None
        return Spread(offset * math.prod(given[target + 1 :]))

    def _shorter(self, slot: int, given: Shape, dim: int, offset: int) -> Place:
        """Return the place in an operand that is a slice of the result."""
        cut = JOINS[self.name](self.values, slot, self.made, self.given)
        if dim != cut.dim:
            return self._kept(dim - (cut.single and dim > cut.dim), given, dim, offset)
        each = offset * self.n
        if cut.start is not None and cut.start % each == cut.length % each == 0:
            return Spread(offset * math.prod(given[dim + 1 :]))
        owner = cut.owner(offset)
        return None if owner is None else One(owner % self.n)


def _located(inner: int, shape: Shape, n: int) -> tuple[int, int] | None:
    """Return the dimension that holds all examples, and how many of its entries one's are."""
    below = 1
    for dim in reversed(range(len(shape))):
        if inner < below * shape[dim]:
            offset, rest = divmod(inner, below)
            return None if rest or shape[dim] % (offset * n) else (dim, offset)
        below *= shape[dim]
    return None
