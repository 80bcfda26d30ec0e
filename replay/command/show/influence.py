"""A result as what a terminal shows and as a plain dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.show.agreement import agreement_json, agreement_tables
from replay.command.show.cells import Describe, listed_steps, plain
from replay.command.show.completeness import completeness_table
from replay.command.show.ranking import ranking, ranking_json
from replay.command.terminal import literal
from replay.results.exporting import to_plain
from replay.results.influence import Influence
from replay.results.summary import said_of_checkpoints, said_of_threads
from replay.results.verdict import verdict


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
        parts.append(agreement_tables(influence))
    if influence.terms:
        parts.append(completeness_table(influence))
    parts.extend(
        ranking(influence, test_id, describe_test, describe_train, k)
        for test_id in influence.test_ids[:examples]
    )
    more = len(influence.test_ids) - examples
    if more > 0:
        parts.append(Text(f"{more} more test examples are in the result file."))
    spaced = (part for table in parts for part in (table, Text()))
    return Group(*spaced, *map(literal, verdict(influence)))


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
        "periods": f"{len(influence.periods)}, by {facts.get('by')}" if influence.periods else "",
        "claims": facts.get("claims"),
        "as in the run": facts.get("as_in_the_run"),
        "checkpoints": _checkpoints(facts),
        "numbers": f"gradients {facts.get('gradient_dtype')}, values {facts.get('value_dtype')}, "
        f"{facts.get('device')}{said_of_threads(facts)}, torch {facts.get('torch')}, "
        f"Python {facts.get('python')}",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        if text or name not in ("checkpoints", "claims", "as in the run", "periods"):
            table.add_row(name, literal(text))
    return table


def _checkpoints(facts: Mapping[str, object]) -> str:
    """Return how many states the scores were summed over, which, and what was asked for."""
    steps = str(facts.get("checkpoints", "")).split()
    if not steps:
        return ""
    return f"{said_of_checkpoints(facts)}: before {listed_steps(steps)}"


def to_json(influence: Influence, *, k: int = 5) -> dict[str, Any]:
    """Return the report and the scores as plain values; what is not a number is None."""
    return {
        "attributes": dict(influence.attributes),
        "test_ids": influence.test_ids,
        **to_plain(influence),
        "agreement": agreement_json(influence.agreement()),
        "completeness": {
            method: {term: [plain(v) for v in values] for term, values in terms.items()}
            for method, terms in influence.completeness.items()
        },
        "top": ranking_json(influence, k, best=True),
        "bottom": ranking_json(influence, k, best=False),
        "verdict": verdict(influence),
    }
