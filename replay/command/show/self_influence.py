"""Self-influence as a table that a terminal shows and as a plain dictionary."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import Describe, explained, named
from replay.command.terminal import literal
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
