"""Self-influence as a table that a terminal shows and as a plain dictionary."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import Describe, explained, named, number
from replay.command.terminal import literal
from replay.results.self_influence import SelfInfluence


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
    for name in ("self", "own drop", "visits"):
        table.add_column(name, justify="right")
    for identity, score in zip(*found.top(k), strict=True):
        place = found.train_ids.index(identity)
        drop, visits = found.scores["own_drop"][place], found.visits[place]
        if score != 0:
            label = literal(named(identity, describe))
            table.add_row(label, number(score), number(drop), str(visits))
    line = "self: what its own part of its steps did to its loss; own drop: the whole steps."
    return explained(table, line)


def self_json(found: SelfInfluence) -> dict[str, Any]:
    """Return the result as plain values."""
    return {
        "attributes": dict(found.attributes),
        "train_ids": found.train_ids,
        "visits": found.visits.tolist(),
        **{name: values.tolist() for name, values in found.scores.items()},
    }
