"""What each method accounts for, beside what was measured."""

from __future__ import annotations

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import explained
from replay.command.terminal import literal
from replay.methods.names import NAMES
from replay.results.influence import Influence
from replay.results.summary import counted, number

_ALWAYS = ("data", "measured")


def completeness_table(influence: Influence) -> RenderableType:
    """Return the terms of the identity, summed over steps, their mean over test examples.

    A term that is 0 at every step for every test example is left out.
    """
    several = len(influence.test_ids) > 1
    over = ("mean over " if several else "") + counted(influence.test_ids)
    title = f"Completeness: {_window(influence)}, {over}"
    table = Table(title=literal(title), title_justify="left")
    table.add_column("")
    for method in influence.terms:
        table.add_column(literal(method), justify="right")
    totals = influence.completeness
    for term in next(iter(influence.terms.values())):
        zero = not any(terms[term].any() for terms in influence.terms.values())
        if zero and term not in _ALWAYS:
            continue
        sign = "= " if term == "measured" else "+ " if term != "data" else "  "
        means = (number(totals[method][term].mean()) for method in influence.terms)
        table.add_row(literal(sign + term), *means)
    table.add_section()
    table.add_row(
        "largest |residual| of a step",
        *(number(np.abs(terms["residual"]).max()) for terms in influence.terms.values()),
    )
    if influence.quadrature:
        _add_quadrature(table, influence)
    line = "Terms add up to the measured drop; residual: what a method does not explain."
    return explained(table, line)


def _add_quadrature(table: Table, influence: Influence) -> None:
    """Add how the methods that refine a split did so."""
    met = influence.quadrature["theta_inside"].mean()
    errors = influence.quadrature["split_error"]
    defined = errors[~np.isnan(errors)]
    rows = {
        "steps that meet the drop": f"{100 * met:.1f} %",
        "steps that were refined": f"{100 * len(defined) / errors.size:.1f} %",
        "their split error (median)": number(np.median(defined)) if len(defined) else "",
        "gradients a step": f"{influence.quadrature['gradients'].mean():.1f}",
    }
    refines = [name in NAMES and NAMES[name].measured for name in influence.terms]
    for label, text in rows.items():
        if any(refines):
            table.add_row(label, *(text if does else "" for does in refines))


def _window(influence: Influence) -> str:
    """Return "whole run" or the steps that were looked at."""
    steps, total = influence.steps, influence.attributes.get("steps")
    if not steps or len(steps) == total:
        return "whole run"
    return f"steps {steps[0]}:{steps[-1] + 1}"
