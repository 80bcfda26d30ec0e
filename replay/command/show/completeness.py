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
    return explained(table, line + _beyond(influence))


def _add_quadrature(table: Table, influence: Influence) -> None:
    """Add how far the splits of the methods that refine them may be off."""
    met = influence.quadrature["theta_inside"].mean()
    errors, beyond = influence.quadrature["split_error"], influence.beyond_tolerance
    defined = errors[~np.isnan(errors)]
    rows = {"steps that meet the drop": f"{100 * met:.1f} %"}
    if len(defined):
        asked = influence.attributes.get("ideal_tolerance")
        rows[f"splits within {asked}"] = f"{100 * (1 - beyond.mean()):.1f} %"
        rows["split error (median)"] = number(np.median(defined))
    rows["test gradients a step"] = f"{influence.quadrature['gradients'].mean():.1f}"
    refines = [name in NAMES and NAMES[name].measured for name in influence.terms]
    for label, text in rows.items():
        if any(refines):
            table.add_row(label, *(text if does else "" for does in refines))


def _beyond(influence: Influence) -> str:
    """Return how many splits may be off by more than was asked for, and the worst."""
    beyond = influence.beyond_tolerance
    if not beyond.any():
        return ""
    errors = influence.quadrature["split_error"]
    t, j = np.unravel_index(np.nanargmax(errors), errors.shape)
    return (
        f"\n{int(beyond.sum())} of {beyond.size} splits may be off by more than "
        f"{influence.attributes['ideal_tolerance']} of themselves; a split divides a step's drop "
        "among its examples. The most is "
        f"{number(errors[t, j])}: step {influence.steps[t]}, test example "
        f"{influence.test_ids[j]}. All are in quadrature_split_error of the result."
    )


def _window(influence: Influence) -> str:
    """Return "whole run" or the steps that were looked at."""
    steps, total = influence.steps, influence.attributes.get("steps")
    if not steps or len(steps) == total:
        return "whole run"
    return f"steps {steps[0]}:{steps[-1] + 1}"
