"""A result as tables that a terminal shows and as a plain dictionary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.terminal import literal
from replay.results.agreement import METRICS, Agreement
from replay.results.influence import Influence
from tracer.records import ID

Describe = Callable[[ID], str | None]

_LABELS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "top_proponents": "top-{k} proponents",
    "top_opponents": "top-{k} opponents",
    "sign": "same sign",
    "slope": "slope",
    "total_ratio": "total ratio",
}


def report(
    influence: Influence,
    *,
    describe_test: Describe,
    describe_train: Describe,
    k: int = 5,
    examples: int = 3,
) -> RenderableType:
    """Return everything that the command line prints.

    Args:
        influence: The result.
        describe_test: Label of a test example, or None.
        describe_train: Label of a training example, or None.
        k: Proponents and opponents of each test example.
        examples: Test examples that are shown.
    """
    parts: list[RenderableType] = [header(influence)]
    if len(influence.scores) > 1:
        parts.append(agreement_table(influence.agreement()))
    if influence.terms:
        parts.append(completeness_table(influence))
    parts.extend(
        ranking(influence, test_id, describe_test, describe_train, k)
        for test_id in influence.test_ids[:examples]
    )
    return Group(*(part for table in parts for part in (table, Text())))


def header(influence: Influence) -> RenderableType:
    """Return what was computed, in which sign and unit, from which run."""
    facts = influence.attributes
    rows = {
        "run": f"{facts.get('log')}  {facts.get('run_uuid')}",
        "steps": f"{facts.get('steps')} of {facts.get('update_rule')}, "
        f"{facts.get('parameters')} parameters",
        "sign": facts.get("sign"),
        "unit": facts.get("unit"),
        "scores": f"{len(influence.test_ids)} test x {len(influence.train_ids)} training examples, "
        f"{facts.get('methods')}",
        "checkpoints": facts.get("checkpoints"),
        "numbers": f"gradients {facts.get('gradient_dtype')}, values {facts.get('value_dtype')}, "
        f"{facts.get('device')}, torch {facts.get('torch')}, Python {facts.get('python')}",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        if name != "checkpoints" or text:
            table.add_row(name, literal(text))
    return table


def agreement_table(agreement: Agreement) -> RenderableType:
    """Return each metric's median over the test examples, quartiles in brackets."""
    title = Text("Agreement: median over test examples [quartiles]")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for first, second in agreement.pairs:
        table.add_column(literal(f"{second}\nagainst {first}"), justify="right", no_wrap=True)
    for metric in METRICS:
        cells = []
        for pair in agreement.pairs:
            row = agreement.get(pair, metric)
            low, middle, high = (number(row.quantile(q)) for q in (0.25, 0.5, 0.75))
            cells.append(Text(f"{middle}\n[{low}, {high}]"))
        table.add_row(_LABELS[metric].format(k=agreement.k), *cells)
    return table


def completeness_table(influence: Influence) -> RenderableType:
    """Return the terms of the identity, summed over steps: mean over test examples, extremes."""
    table = Table(title="Completeness: whole run, mean over test examples", title_justify="left")
    table.add_column("")
    for method in influence.terms:
        table.add_column(literal(method), justify="right")
    totals = influence.completeness
    for term in next(iter(influence.terms.values())):
        sign = "= " if term == "measured" else "+ " if term != "data" else "  "
        table.add_row(
            literal(sign + term),
            *(number(totals[method][term].mean()) for method in influence.terms),
        )
    table.add_section()
    table.add_row(
        "largest |residual| of a step",
        *(number(np.abs(terms["residual"]).max()) for terms in influence.terms.values()),
    )
    if not influence.quadrature:
        return table
    inside = influence.quadrature["theta_inside"].mean()
    errors = influence.quadrature["split_error"]
    defined = errors[~np.isnan(errors)]
    error = number(np.median(defined)) if len(defined) else "not refined"
    line = (
        f"ideal: the measured drop was met in {100 * inside:.1f} % of steps x test examples; "
        f"split error (median) {error}; "
        f"{influence.quadrature['gradients'].mean():.1f} gradients a step"
    )
    return Group(table, Text(line))


def ranking(
    influence: Influence, test_id: ID, describe_test: Describe, describe_train: Describe, k: int
) -> RenderableType:
    """Return the strongest proponents and opponents of one test example by every method."""
    label = describe_test(test_id)
    title = f"test example {test_id}" + (f": {label}" if label else "")
    table = Table(title=literal(title), title_justify="left")
    for name in ("method", "proponents", "", "opponents", ""):
        table.add_column(name, justify="right" if name == "" else "left")
    for method in influence.scores:
        proponents = zip(*influence.top(test_id, method=method, k=k), strict=True)
        opponents = zip(*influence.bottom(test_id, method=method, k=k), strict=True)
        for n, ((z, up), (other, down)) in enumerate(zip(proponents, opponents, strict=True)):
            table.add_row(
                literal(method if n == 0 else ""),
                literal(_named(z, describe_train)),
                number(up),
                literal(_named(other, describe_train)),
                number(down),
            )
        table.add_section()
    return table


def to_json(influence: Influence, *, k: int = 5) -> dict[str, Any]:
    """Return the report as plain values; what is not a number is None."""
    agreement = influence.agreement()
    return {
        "attributes": dict(influence.attributes),
        "test_ids": influence.test_ids,
        "agreement": [
            {
                "x": row.pair[0],
                "y": row.pair[1],
                "metric": row.metric,
                "median": _plain(row.median),
                "q1": _plain(row.quantile(0.25)),
                "q3": _plain(row.quantile(0.75)),
                "defined": int((~np.isnan(row.values)).sum()),
            }
            for row in agreement.rows
        ],
        "completeness": {
            method: {term: [_plain(v) for v in values] for term, values in terms.items()}
            for method, terms in influence.completeness.items()
        },
        "top": {method: _ranked(influence, method, k, best=True) for method in influence.scores},
        "bottom": {
            method: _ranked(influence, method, k, best=False) for method in influence.scores
        },
    }


def _ranked(influence: Influence, method: str, k: int, *, best: bool) -> list[dict[str, Any]]:
    rank = influence.top if best else influence.bottom
    rows = []
    for test_id in influence.test_ids:
        ids, scores = rank(test_id, method=method, k=k)
        rows.append({"test": test_id, "train": ids, "scores": [_plain(s) for s in scores]})
    return rows


def number(value: float) -> str:
    """Return a number in four significant digits."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _named(identity: ID, describe: Describe) -> str:
    label = describe(identity)
    return f"{identity} ({label})" if label else str(identity)
