"""A pass that is read by a plan which was proven on another one."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from replay.gradients.forms.dense import matrices
from replay.gradients.forms.form import Form, all_finite, for_products, is_finite
from replay.gradients.forms.sum import added
from replay.gradients.operations.views import Node, shape_of
from replay.gradients.proof.agreement import adds_up, allowed, dense, not_adding_up
from replay.gradients.proof.forward_pass import Chosen, Pass, Plan, form_of, magnitudes

Read = tuple[dict[str, Form], dict[str, Tensor]]


def chosen(found: Pass, plan: Plan) -> Chosen | None:
    """Return the readers that a plan chose; None if results cannot hold the examples like that."""
    ways = {
        name: [
            (readers[choice.number], choice)
            for readers, choice in zip(found.candidates(name), choices, strict=True)
        ]
        for name, choices in plan.items()
    }
    for reader, choice in (one for some in ways.values() for one in some):
        seen = reader.shape or shape_of(reader.node)
        if not choice.layout.fits(math.prod(seen[: reader.leading]), len(found.losses)):
            return None
    return ways


def follow(found: Pass, ways: Chosen, *, totals: bool, retain: bool = False) -> Read | None:
    """Return the covered parameters' gradients and plain ones.

    Args:
        found: The pass.
        ways: What a plan chose that was proven on a pass with the same graph.
        totals: Whether plain gradients, of all parameters, are wanted.
        retain: Whether the graph is needed afterwards in any case.

    Returns:
        Gradients; None if they do not add up to plain ones, or are no longer zero where they were
        when the plan was proven.
    """
    n = len(found.losses)
    nodes = list({reader.node: None for some in ways.values() for reader, _ in some})
    names = list(found.parameters) if totals else []
    keep = retain or (totals and len(ways) < len(found.parameters))
    total, deltas = found.backward(names, nodes, found.weights, retain=keep)
    vague = not all_finite(total.values())  # an error in any case: who is to blame?
    forms = {}
    for name, some in ways.items():
        there = [(reader, choice) for reader, choice in some if reader.node in deltas]
        terms = [form_of(reader, one.layout, deltas[reader.node], n) for reader, one in there]
        shown = (choice.shown for _, choice in there)
        new = (not k and bool(term.summed().any()) for k, term in zip(shown, terms, strict=True))
        if not vague and any(new):
            return None
        forms[name] = added(terms) if terms else _nothing(found, name)  # nothing flows back
    return (forms, total) if _add_up(found, ways, deltas, forms, total) else None


def _add_up(
    found: Pass,
    ways: Chosen,
    deltas: dict[Node, Tensor],
    forms: dict[str, Form],
    total: dict[str, Tensor],
) -> bool:
    """Return whether parts add up to the plain gradients that there are."""
    tolerances = {
        name: allowed(found.parameters[name], [deltas[r.node] for r, _ in some if r.node in deltas])
        for name, some in ways.items()
        if name in total
    }
    for name in not_adding_up(forms, total, tolerances):  # by a fast look
        there = [(r, one.layout, deltas[r.node]) for r, one in ways[name] if r.node in deltas]
        form, whole = forms[name], for_products(dense(total[name])).reshape(forms[name].shape)
        large = partial(magnitudes, there, len(found.losses))
        right = adds_up(form, form.summed(), whole, tolerances[name], large)
        if not right and is_finite(total[name]):  # else it is told elsewhere
            return False
    return True


def _nothing(found: Pass, name: str) -> Form:
    parameter = found.parameters[name]
    zero = for_products(parameter.new_zeros(1, parameter.numel()))
    return matrices(zero.expand(len(found.losses), -1), parameter.shape)
