"""Self-influence as a table that a terminal shows and as a plain dictionary."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import Describe, explained, named
from replay.command.terminal import literal
from replay.results.exporting import plain_table
from replay.results.self_influence import SelfInfluence
from replay.results.summary import number


def self_report(found: SelfInfluence, *, describe: Describe, k: int = 10) -> RenderableType:
    """Return the examples with the largest self-influence.

    Args:
        found: The result.
        describe: Label of a training example, or None.
        k: How many.
    """
    facts = found.attributes
    title = (
        f"Largest self-influence of {len(found.train_ids)} training examples: {facts.get('log')}, "
        f"steps {facts.get('window')} of {facts.get('update_rule')}"
    )
    table = Table(title=literal(title), title_justify="left")
    table.add_column("training example")
    for name in (*(_said(name) for name in found.scores), "visits"):
        table.add_column(name, justify="right")
    for identity, score in zip(*found.top(k), strict=True):
        place = found.train_ids.index(identity)
        if score != 0:
            cells = [number(values[place]) for values in found.scores.values()]
            visits = str(found.visits[place])
            table.add_row(literal(named(identity, describe)), *cells, visits)
    line = "self: its own part of its steps; own drop: the whole steps; loss: the baseline."
    return explained(table, line)


def _said(name: str) -> str:
    return name.replace("_", " ")


def self_json(found: SelfInfluence) -> dict[str, Any]:
    """Return the result as plain values; what is not a number is None."""
    result = {
        "attributes": dict(found.attributes),
        "train_ids": found.train_ids,
        "visits": found.visits.tolist(),
        **{name: plain_table(values) for name, values in found.scores.items()},
    }
    if not found.periods:
        return result
    parts = {name: plain_table(values) for name, values in found.by_period.items()}
    visits = found.visits_by_period.tolist()
    return {**result, "periods": found.periods, "by_period": parts | {"visits": visits}}
