r"""The proof of a plan: which parameters' pieces are right, shown on a pass that was run.

For every candidate way to read an operation: the rows of its result are examples (see ``layout``);
the pieces of a parameter add up to its plain gradient; and the gradients of two examples are what
their own backward passes give. A parameter that fails takes the complete way, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor

from replay.gradients.forms.piece import Piece, for_products
from replay.gradients.operations.graph import Node
from replay.gradients.proof.forward_pass import Pass, Plan, Way, merged, piece_of
from replay.gradients.proof.layout import (
    FIRST,
    LAST,
    Layout,
    deviation,
    is_half,
    prove,
    random_factors,
    tolerance_of,
)
from replay.gradients.readers.use import Shape, Use

COMPLETE = "complete: "
_ROUNDED = 0.1  # of half-precision parameters: plain sums round as they go (LayerNorm's by 6 %)
_SHARE = 5.0  # times the rounding of one operation, in a whole gradient
_Layouts = dict[tuple[Node, Shape | None, int], tuple[Layout | None, bool]]


@dataclass(frozen=True)
class Proof:
    """What a pass showed.

    Attributes:
        plan: The covered parameters.
        certain: Whether it holds for later passes: every layout was the only one possible. Where
            gradients vanish, nothing is proven beyond this pass.
        pieces: Of the covered parameters.
        total: Plain gradients of all.
        paths: By parameter, its kinds of operation, or why it takes the complete way.
    """

    plan: Plan
    certain: bool
    pieces: dict[str, list[Piece]]
    total: dict[str, Tensor]
    paths: dict[str, str]


@dataclass(frozen=True)
class _Reading:
    """One parameter read: its ways and pieces, or why not."""

    ways: list[Way]
    pieces: list[Piece]
    certain: bool
    path: str
    tolerance: float = 0.0  # of the coarsest operation: under autocast not the parameter's


def prove_plan(found: Pass) -> Proof:
    """Find and prove the plan of a pass; its graph is kept."""
    names = list(found.parameters)
    candidates = {name: found.candidates(name) for name in names}
    uses = [use for arrivals in candidates.values() for one in arrivals for use in one]
    nodes = list({use.node: None for use in uses})
    total, deltas = found.backward(names, nodes, found.weights, retain=True)
    layouts = _layouts(found, uses, deltas)
    readings = {name: _read(found, name, candidates[name], deltas, layouts) for name in total}
    covered = [name for name in total if readings[name].pieces]
    wrong = _wrong(found, {name: readings[name] for name in covered}, total)
    paths = {name: wrong.get(name, readings[name].path) for name in total}
    right = [name for name in covered if name not in wrong]
    return Proof(
        {name: readings[name].ways for name in right},
        all(readings[name].certain for name in right) and len(total) == len(names),
        {name: readings[name].pieces for name in right},
        total,
        paths,
    )


def _layouts(found: Pass, uses: list[Use], deltas: dict[Node, Tensor]) -> _Layouts:
    """Find layouts by one more backward, of which nothing is kept."""
    rounded = any(is_half(delta.dtype) for delta in deltas.values())
    factors = random_factors(len(found.losses), found.losses, rounded=rounded)
    by_node: dict[Node, set[tuple[Shape | None, int]]] = {}
    for use in uses:
        if use.node in deltas:
            by_node.setdefault(use.node, set()).add((use.shape, use.leading))
    layouts: _Layouts = {}

    def seen(node: Node, probe: Tensor) -> None:
        for shape, leading in by_node[node]:
            delta, probed = (x if shape is None else x.view(shape) for x in (deltas[node], probe))
            allowed = tolerance_of(delta.dtype)
            layouts[node, shape, leading] = prove(delta, probed, factors, leading, allowed)

    found.watch(list(by_node), found.weights * factors, seen)
    return layouts


def _read(
    found: Pass,
    name: str,
    arrivals: list[list[Use]],
    deltas: dict[Node, Tensor],
    layouts: _Layouts,
) -> _Reading:
    ways: list[Way] = []
    pieces: list[Piece] = []
    kinds: list[str] = []
    own = found.parameters[name].dtype
    certain, tolerance = True, _ROUNDED if is_half(own) else tolerance_of(own)
    for arrival, uses in zip(found.graph.arrivals[name], arrivals, strict=True):
        if not uses:
            operation = arrival.node.name().removesuffix("Backward0")
            return _Reading([], [], True, f"{COMPLETE}used by {operation}")
        for number, use in enumerate(uses):
            layout, only = layouts.get((use.node, use.shape, use.leading), (None, False))
            if layout is not None:
                ways.append(Way(number, layout))
                pieces.append(piece_of(use, layout, deltas[use.node], len(found.losses)))
                kinds.append(use.kind)
                tolerance = max(tolerance, tolerance_of(deltas[use.node].dtype))
                # any other layout depends on lengths, which the next pass may change
                certain &= only and layout in (FIRST, LAST)
                break
        else:
            why = f"{COMPLETE}rows of its {uses[0].kind} operation are not examples"
            return _Reading([], [], True, why)
    return _Reading(ways, merged(pieces), certain, ", ".join(dict.fromkeys(kinds)), tolerance)


def _wrong(found: Pass, readings: dict[str, _Reading], total: dict[str, Tensor]) -> dict[str, str]:
    """Return the parameters whose pieces are not what plain backward passes give, and why."""
    why = {}
    for name, reading in readings.items():
        whole = for_products(total[name]).reshape(reading.pieces[0].shape)
        added = reduce(add, (piece.summed() for piece in reading.pieces))
        scale = partial(_added, reading.pieces, reading.tolerance)
        if not _agree(added, whole, reading.tolerance, scale):
            why[name] = f"{COMPLETE}its parts do not add up to the plain gradient"
    n, rest = len(found.losses), [name for name in readings if name not in why]
    for i in {0, n // 2} if rest else ():
        own = found.own(i, rest)
        for name in rest:
            pieces = readings[name].pieces
            row = row_of(pieces, i)
            if not _agree(row, own[name], readings[name].tolerance, partial(_usual, pieces)):
                why[name] = f"{COMPLETE}an example's part is not its own gradient"
    return why


def is_rounding(found: Pass, pieces: dict[str, list[Piece]]) -> bool:
    """Return whether some parameters' gradients are right but for rounding, at all examples.

    Where they cancel (a norm over two values, a saturated softmax) they are mostly rounding of
    larger terms, in which nothing can be proven; so it counts as a share of the whole gradients.
    """
    nodes = [use.node for name in pieces for one in found.candidates(name) for use in one]
    allowed = max(tolerance_of(node._input_metadata[0].dtype) for node in nodes)
    off, whole = (torch.zeros(len(found.losses), dtype=torch.float64) for _ in range(2))
    for i in range(len(off)):
        own = found.own(i, list(found.parameters))
        whole[i] = sum(float(g.double().square().sum()) for g in own.values())
        gaps = (deviation(row_of(some, i), own[name]) for name, some in pieces.items())
        off[i] = sum(float(gap.double().square().sum()) for gap in gaps)
    return bool((off.sqrt() <= _SHARE * allowed * whole.clamp_min(whole.median()).sqrt()).all())


def row_of(pieces: list[Piece], i: int) -> Tensor:
    """Return one example's gradient, flat."""
    chosen = torch.tensor([i], device=pieces[0].tensors[0].device)
    rows = slice(0, pieces[0].shape[0])
    return reduce(add, (piece.select(chosen).dense(rows)[0] for piece in pieces))


def _added(pieces: list[Piece], tolerance: float) -> float:
    """Return how large what is added up is, which may cancel while rounding is a share of it.

    Parts are kept in the dtype of the tolerance, the sum on its way at least in float32.
    """
    norms = torch.cat([piece.squared_norms() for piece in pieces]).sqrt()
    on_its_way = min(1.0, tolerance_of(torch.float32) / tolerance)
    return float(norms.norm() + on_its_way * norms.sum())


def _usual(pieces: list[Piece]) -> float:
    """Return how large an example's gradient is as a rule; one of them may cancel."""
    return float(torch.stack([piece.squared_norms() for piece in pieces]).sum(0).mean().sqrt())


def _agree(found: Tensor, expected: Tensor, tolerance: float, scale: Callable[[], float]) -> bool:
    """Return whether two gradients differ by no more than rounding, of theirs or of ``scale()``."""
    size, off = float(expected.norm()), float(deviation(found, expected).norm())
    if not math.isfinite(size):
        size = float(expected.masked_fill(~expected.isfinite(), 0).norm())
    if off <= tolerance * size:
        return True
    least = scale()
    return math.isfinite(least) and off <= tolerance * least
