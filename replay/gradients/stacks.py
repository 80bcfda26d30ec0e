r"""Per-example gradients of linear layers at several states, of one pass for all of them.

Parameters have one more dimension in front, that of S states, and losses are ``(S, n)``. A weight's
gradients at state s are the outer products of rows of ``δ[s]`` and ``a[s]``, as in a pass of its
own. Nothing else is read: what a graph has besides ends the attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from replay.gradients.forms.dense import Dense
from replay.gradients.forms.form import Form
from replay.gradients.forms.outer_products import OuterProducts
from replay.gradients.forms.per_example import PerExample
from replay.gradients.operations.graph import Graph, walk
from replay.gradients.operations.views import Node, shape_of
from replay.gradients.proof.agreement import directions
from replay.gradients.proof.layout import tolerance_of

_SAME = ("ExpandBackward0", "ReshapeAliasBackward0", "ViewBackward0", "UnsafeViewBackward0")
_TURNED = ("TransposeBackward0", "TBackward0")


class NotStacked(Exception):
    """States cannot be taken in one pass, or it does not give what one of each gives."""


@dataclass(frozen=True)
class Stack:
    """Gradients of ``c_i ℓ_i`` of n examples at S states.

    Attributes:
        losses: ``ℓ``, detached, ``(S, n)``.
        factors: By parameter ``δ``, ``(S, n, p)``, and ``a``, ``(S, n, d)``; of a bias None.
        total: Plain gradients, ``(S, *shape)``; empty without weights.
        right: Whether all of a state is finite, and parts add up to its plain gradients.
    """

    losses: Tensor
    factors: dict[str, tuple[Tensor, Tensor | None]]
    total: dict[str, Tensor]
    right: list[bool]

    def at(self, s: int) -> PerExample | None:
        """Return the gradients at a state, if they are right."""
        if not self.right[s]:
            return None
        forms = {
            name: _form(delta[s], None if inputs is None else inputs[s])
            for name, (delta, inputs) in self.factors.items()
        }
        return PerExample(self.losses[s], forms, {name: g[s] for name, g in self.total.items()})


@dataclass(frozen=True)
class _Use:
    """Where a parameter is used: the node of ``δ``, and what it is multiplied with, if anything."""

    node: Node
    inputs: Tensor | None


def gradients(
    parameters: dict[str, Tensor], losses: Tensor, weights: Tensor | None = None
) -> Stack:
    """Return the gradients of ``c_i ℓ_i`` at each state.

    Args:
        parameters: By name, ``(S, *shape)``, leaves.
        losses: ``(S, n)``, with their graph.
        weights: ``c``, ``(S, n)``; without them there are no plain gradients, and ``c`` is 1.

    Raises:
        NotStacked: A parameter is used otherwise than by one linear layer.
    """
    graph = walk(losses, {id(p): name for name, p in parameters.items()})
    uses = {
        name: _use(name, p, losses, graph)
        for name, p in parameters.items()
        if name in graph.arrivals
    }
    nodes = list(dict.fromkeys(use.node for use in uses.values()))
    total, deltas = _backward(losses, weights, {n: parameters[n] for n in uses}, nodes)
    total = _flat(total)
    factors = {name: (deltas[use.node], use.inputs) for name, use in uses.items()}
    right = _finite([losses.detach(), *deltas.values(), *total.values()])
    for name, whole in total.items():
        right &= _adds_up(*factors[name], whole)
    return Stack(losses.detach(), factors, total, right.tolist())


def _backward(
    losses: Tensor, weights: Tensor | None, targets: dict[str, Tensor], nodes: list[Node]
) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
    """Return plain gradients, if there are weights, and gradients of nodes' results."""
    given = losses if weights is None else losses * weights.to(losses)
    wanted: list[Any] = [] if weights is None else list(targets.values())
    edges = [GradientEdge(node, 0) for node in nodes]
    found = torch.autograd.grad(given.sum(), [*wanted, *edges])
    whole = dict(zip(targets, found[: len(wanted)], strict=False))
    return whole, dict(zip(nodes, found[len(wanted) :], strict=True))


def _flat(total: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same, those of each state one after the other in memory, as ``fused`` has them."""
    if len({one.dtype for one in total.values()}) != 1:
        return total
    rows = [one.flatten(1) for one in total.values()]
    parts = torch.split(torch.cat(rows, 1), [row.shape[1] for row in rows], 1)
    return {n: part.view(total[n].shape) for n, part in zip(total, parts, strict=True)}


def _use(name: str, parameter: Tensor, losses: Tensor, graph: Graph) -> _Use:
    """Return how a parameter is used, if by one linear layer."""
    states, n = losses.shape
    node: Node = get_gradient_edge(parameter).node
    shape, turned = tuple(parameter.shape), False
    while True:
        users = graph.users[node]
        if len(users) != 1:
            raise NotStacked(f"{name} is used {len(users)} times")
        node, slot, _ = users[0]
        kind, made = node.name(), shape_of(node)
        if kind in _TURNED and len(shape) == 3 and made == (shape[0], shape[2], shape[1]):
            shape, turned = made, not turned
        elif kind in _SAME and (made == shape or (len(shape) == 2 and made == _row(shape))):
            shape = made
        elif not (kind == "MulBackward1" and node._saved_other == 1 and made == shape):
            break
    if kind == "BmmBackward0" and slot == 1 and turned and made == (states, n, shape[2]):
        return _Use(node, node._saved_self.detach())
    bias = kind == "AddBackward0" and shape == (states, 1, made[-1]) and len(parameter.shape) == 2
    if bias and made == (states, n, made[-1]) and (slot == 0 or node._saved_alpha == 1):
        return _Use(node, None)
    raise NotStacked(f"{name} is used by {kind.removesuffix('Backward0')}, not by a linear layer")


def _row(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], 1, shape[1])


def _form(delta: Tensor, inputs: Tensor | None) -> Form:
    if inputs is None:
        return Dense(delta[:, :, None])
    return OuterProducts(inputs[:, None], delta[:, None], 0, delta.shape[1])


def _finite(tensors: list[Tensor]) -> Tensor:
    """Return at which states all elements are numbers, as far as their sums tell."""
    return torch.stack([one.flatten(1).sum(1) for one in tensors]).isfinite().all(0)


def _adds_up(delta: Tensor, inputs: Tensor | None, total: Tensor) -> Tensor:
    """Return at which states parts add up to plain gradients, seen from random vectors.

    They may be off by a share of how large their terms are: these may cancel.
    """
    matrix = total[:, :, None] if inputs is None else total
    shape = (matrix.shape[1], matrix.shape[2])
    left, right = directions(shape, total.dtype, total.device)
    seen = (matrix @ right) @ left
    parts = _sketched(delta, inputs, left, right)
    size = _sketched(delta.abs(), None if inputs is None else inputs.abs(), left.abs(), right.abs())
    return (parts - seen).abs() <= tolerance_of(total.dtype) * size


def _sketched(delta: Tensor, inputs: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return ((delta @ left) * (right if inputs is None else inputs @ right)).sum(1)


def unlike(found: PerExample) -> str | None:
    """Return which parameter's gradients, of one state alone, no stack would have; None if none.

    So nothing large is tried: convolutions, sequences, embeddings.
    """
    for name, form in found.forms.items():
        if form.factors is None and not (isinstance(form, Dense) and form.shape[1] == 1):
            return name
    return next(iter(found.complete), None)


def are_alike(found: PerExample, expected: PerExample) -> bool:
    """Return whether gradients of a stack are those of a pass of its own, but for rounding.

    Each example's gradient is multiplied with one vector from either side, as parts are that are
    to add up: what differs anywhere differs there.
    """
    if found.forms.keys() != expected.forms.keys() or expected.complete:
        return False
    off = size = 0.0
    for name, form in expected.forms.items():
        left, right = directions(form.shape, form.tensors[0].dtype, form.tensors[0].device)
        theirs = form.sketch(left, right).double()
        off += float((found.forms[name].sketch(left, right) - theirs).square().sum())
        size += float(theirs.square().sum())
    share = tolerance_of(expected.losses.dtype)
    close = torch.allclose(found.losses, expected.losses, share, share)
    return close and off <= (5 * share) ** 2 * size
