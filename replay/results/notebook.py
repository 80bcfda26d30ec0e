"""A result of influence as a notebook shows it: a few lines, whatever it holds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from replay.results.summary import number
from tracer.records import ID

ROWS, NAMED = 5, 3  # test examples, and proponents and opponents of each
_LONGEST = 40  # characters of an ID
_RIGHT = ' style="text-align:right"'


def ranking_html(method: str, rows: Sequence[tuple[ID, float | None, Any, Any]], more: int) -> str:
    """Return a table of test examples: measured drop, proponents and opponents.

    Args:
        method: Whose scores they are.
        rows: For each test example its ID, its drop, and pairs of IDs and scores, twice.
        more: Test examples that are left out.
    """
    head = "".join(
        f"<th>{escape(name)}</th>"
        for name in ("test", "measured drop", f"proponents by {method}", "opponents")
    )
    lines = "".join(
        f"<tr><td>{_named(test)}</td><td{_RIGHT}>{'' if drop is None else number(drop)}</td>"
        f"<td>{_pairs(up)}</td><td>{_pairs(down)}</td></tr>"
        for test, drop, up, down in rows
    )
    rest = f"<p>{more} more test examples</p>" if more else ""
    return f"<table><tr>{head}</tr>{lines}</table>{rest}"


def _pairs(ranked: Sequence[tuple[ID, float]]) -> str:
    return "<br>".join(f"{_named(identity)}: {number(score)}" for identity, score in ranked)


def _named(identity: ID) -> str:
    text = str(identity)
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
