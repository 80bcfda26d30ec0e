r"""The proof of a plan: which parameters' pieces are right, shown on a pass that was run.

For every candidate way to read an operation: the rows of its result are examples (see ``layout``);
the pieces of a parameter add up to its plain gradient; and the gradients of two examples are what
their own backward passes give. A parameter that fails takes the complete way, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.graph import Node
from replay.gradients.layout import (
    FIRST,
    LAST,
    deviation,
    prove,
    random_factors,
    tolerance_of,
)
from replay.gradients.passes import Pass, Plan, Way, merged, piece_of
from replay.gradients.pieces import Piece, blocks_of_rows, for_products
from replay.gradients.reading import Use

COMPLETE = "complete: "


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


def prove_plan(found: Pass) -> Proof:
    """Find and prove the plan of a pass; its graph is kept."""
    names = list(found.parameters)
    candidates = {name: found.candidates(name) for name in names}
    uses = [use for arrivals in candidates.values() for one in arrivals for use in one]
    nodes = list({use.node: None for use in uses})
    total, deltas = found.backward(names, nodes, found.weights, retain=True)
    factors = random_factors(len(found.losses), found.losses)
    _, probes = found.backward((), nodes, found.weights * factors, retain=True)
    readings = {
        name: _read(found, name, candidates[name], deltas, probes, factors) for name in total
    }
    covered = [name for name in total if readings[name].pieces]
    wrong = _wrong(found, {name: readings[name].pieces for name in covered}, total)
    paths = {name: wrong.get(name, readings[name].path) for name in total}
    right = [name for name in covered if name not in wrong]
    return Proof(
        {name: readings[name].ways for name in right},
        all(readings[name].certain for name in right) and len(total) == len(names),
        {name: readings[name].pieces for name in right},
        total,
        paths,
    )


def _read(
    found: Pass,
    name: str,
    arrivals: list[list[Use]],
    deltas: dict[Node, Tensor],
    probes: dict[Node, Tensor],
    factors: Tensor,
) -> _Reading:
    ways: list[Way] = []
    pieces: list[Piece] = []
    kinds: list[str] = []
    certain = True
    for arrival, uses in zip(found.graph.arrivals[name], arrivals, strict=True):
        if not uses:
            operation = arrival.node.name().removesuffix("Backward0")
            return _Reading([], [], True, f"{COMPLETE}used by {operation}")
        for number, use in enumerate(uses):
            if use.node not in deltas or use.node not in probes:
                continue
            seen = use.shape or deltas[use.node].shape
            delta, probe = (side[use.node].view(seen) for side in (deltas, probes))
            layout, only = prove(delta, probe, factors, use.leading, 10 * tolerance_of(delta.dtype))
            if layout is not None:
                ways.append(Way(number, layout))
                pieces.append(piece_of(use, layout, delta, len(factors)))
                kinds.append(use.kind)
                # any other layout depends on lengths, which the next pass may change
                certain &= only and layout in (FIRST, LAST)
                break
        else:
            why = f"{COMPLETE}rows of its {uses[0].kind} operation are not examples"
            return _Reading([], [], True, why)
    return _Reading(ways, merged(pieces), certain, ", ".join(dict.fromkeys(kinds)))


def _wrong(found: Pass, pieces: dict[str, list[Piece]], total: dict[str, Tensor]) -> dict[str, str]:
    """Return the parameters whose pieces are not what plain backward passes give, and why."""
    why = {}
    for name, parts in pieces.items():
        if not _agree(_summed(parts), for_products(total[name]).flatten(), total[name].dtype):
            why[name] = f"{COMPLETE}its parts do not add up to the plain gradient"
    n, rest = len(found.losses), [name for name in pieces if name not in why]
    for i in {0, n // 2} if rest else ():
        own = found.own(i, rest)
        chosen = torch.tensor([i], device=found.losses.device)
        for name in rest:
            whole = slice(0, pieces[name][0].shape[0])
            row = torch.stack([p.select(chosen).dense(whole)[0] for p in pieces[name]]).sum(0)
            if not _agree(row, own[name], found.parameters[name].dtype):
                why[name] = f"{COMPLETE}an example's part is not its own gradient"
    return why


def _summed(pieces: list[Piece]) -> Tensor:
    """Return the sum of all examples' gradients, flat."""
    shape, count = pieces[0].shape, pieces[0].count
    blocks = blocks_of_rows(shape, count)
    sums = [sum(piece.dense(rows).sum(0) for piece in pieces) for rows in blocks]
    return torch.cat(sums)  # type: ignore[arg-type]


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    size = expected.norm().double()
    if not size.isfinite():
        size = expected.masked_fill(~expected.isfinite(), 0).norm().double()
    return bool(deviation(found, expected).norm() <= 10 * tolerance_of(dtype) * size)
