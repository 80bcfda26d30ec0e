"""A pass that is read by a plan which was proven on another one."""

from __future__ import annotations

import math

from torch import Tensor

from replay.gradients.forms.dense import matrices
from replay.gradients.forms.form import Form, for_products
from replay.gradients.forms.sum import added
from replay.gradients.operations.views import shape_of
from replay.gradients.proof.forward_pass import Pass, Plan, form_of


def follow(
    found: Pass, plan: Plan, *, totals: bool, retain: bool = False
) -> tuple[dict[str, Form], dict[str, Tensor]] | None:
    """Return the covered parameters' gradients and plain ones; None if the plan does not fit.

    Args:
        found: The pass.
        plan: Proven on a pass with the same graph.
        totals: Whether plain gradients, of all parameters, are wanted.
        retain: Whether the graph is needed afterwards in any case.
    """
    n = len(found.losses)
    chosen = {
        name: [
            (readers[choice.number], choice.layout)
            for readers, choice in zip(found.candidates(name), choices, strict=True)
        ]
        for name, choices in plan.items()
    }
    for reader, layout in (one for some in chosen.values() for one in some):
        seen = reader.shape or shape_of(reader.node)
        if not layout.fits(math.prod(seen[: reader.leading]), n):
            return None
    nodes = list({reader.node: None for some in chosen.values() for reader, _ in some})
    names = list(found.parameters) if totals else []
    keep = retain or (totals and len(plan) < len(found.parameters))
    total, deltas = found.backward(names, nodes, found.weights, retain=keep)
    forms = {}
    for name, some in chosen.items():
        terms = [
            form_of(reader, layout, deltas[reader.node], n)
            for reader, layout in some
            if reader.node in deltas  # else nothing flows back
        ]
        forms[name] = added(terms) if terms else _nothing(found, name)
    return forms, total


def _nothing(found: Pass, name: str) -> Form:
    parameter = found.parameters[name]
    zero = for_products(parameter.new_zeros(1, parameter.numel()))
    return matrices(zero.expand(len(found.losses), -1), parameter.shape)
