"""Self-influence as a table that a terminal shows and as a plain dictionary."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.show.influence import Describe, number
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
    table = Table(
        title=Text(f"Largest self-influence of {len(found.train_ids)} training examples"),
        title_justify="left",
    )
    table.add_column("training example")
    for name in ("self", "own drop", "visits"):
        table.add_column(name, justify="right")
    ids, scores = found.top(k)
    for identity, score in zip(ids, scores, strict=True):
        place = found.train_ids.index(identity)
        label = describe(identity)
        table.add_row(
            literal(f"{identity}" + (f": {label}" if label else "")),
            number(score),
            number(found.scores["own_drop"][place]),
            str(found.visits[place]),
        )
    notes = (
        f"{facts.get('log')}: steps {facts.get('window')} of {facts.get('update_rule')}.",
        "self: immediate effect of an example's own part of its steps on its own loss;",
        "own drop: what its whole steps did to its loss. Positive = lowered it.",
    )
    return Group(table, *map(literal, notes))


def self_json(found: SelfInfluence) -> dict[str, Any]:
    """Return the result as plain values."""
    return {
        "attributes": dict(found.attributes),
        "train_ids": found.train_ids,
        "visits": found.visits.tolist(),
        **{name: values.tolist() for name, values in found.scores.items()},
    }
