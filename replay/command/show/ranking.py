"""The strongest proponents and opponents of a test example, as a table and as plain values."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import Describe, explained, named, plain
from replay.command.terminal import literal
from replay.methods.names import reference
from replay.results.influence import Influence
from replay.results.summary import number
from tracer.records import ID

Ranked = list[tuple[ID, float]]


def ranking(
    influence: Influence, test_id: ID, describe_test: Describe, describe_train: Describe, k: int
) -> RenderableType:
    """Return the strongest proponents and opponents of one test example by every method.

    Only scores above 0 make a proponent, and only those below 0 an opponent.
    """
    label = describe_test(test_id)
    title = f"test example {test_id}" + (f": {label}" if label else "")
    table = Table(title=literal(title), title_justify="left")
    for name in ("method", "proponents", "", "opponents", ""):
        table.add_column(name, justify="right" if name == "" else "left")
    for method in influence.scores:
        up, down = (
            _proponents(influence, test_id, method, k),
            _opponents(influence, test_id, method, k),
        )
        rows = list(zip_longest(up, down)) or [(None, None)]
        for n, pair in enumerate(rows):
            cells = [cell for one in pair for cell in _cells(one, describe_train)]
            table.add_row(literal(method if n == 0 else ""), *map(literal, cells))
        table.add_section()
    return explained(table, _line(influence, test_id, k))


def ranking_json(influence: Influence, k: int, *, best: bool) -> dict[str, list[dict[str, Any]]]:
    """Return by method the strongest proponents (or opponents) of every test example."""
    rank = influence.top if best else influence.bottom
    found = {}
    for method in influence.scores:
        rows = ((test_id, *rank(test_id, method=method, k=k)) for test_id in influence.test_ids)
        found[method] = [
            {"test": test_id, "train": ids, "scores": [plain(score) for score in scores]}
            for test_id, ids, scores in rows
        ]
    return found


def _proponents(influence: Influence, test_id: ID, method: str, k: int) -> Ranked:
    found = zip(*influence.top(test_id, method=method, k=k), strict=True)
    return [(identity, score) for identity, score in found if score > 0]


def _opponents(influence: Influence, test_id: ID, method: str, k: int) -> Ranked:
    found = zip(*influence.bottom(test_id, method=method, k=k), strict=True)
    return [(identity, score) for identity, score in found if score < 0]


def _cells(one: tuple[ID, float] | None, describe: Describe) -> tuple[str, str]:
    return ("", "") if one is None else (named(one[0], describe), number(one[1]))


def _line(influence: Influence, test_id: ID, k: int) -> str:
    """Return how many of the strongest proponents of one method the others name, too."""
    best = {
        method: {identity for identity, _ in _proponents(influence, test_id, method, k)}
        for method in influence.scores
    }
    first = reference(influence.scores)
    if len(best) == 1 or not best[first]:
        return "Proponents lowered its test value, opponents raised it."
    others = (f"{len(best[name] & best[first])} by {name}" for name in best if name != first)
    return f"{first}'s top {len(best[first])} proponents are named: {', '.join(others)}."
