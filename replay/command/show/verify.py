"""Whether a run reproduces, as a table and as a plain dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import plain
from replay.command.terminal import literal
from replay.results.summary import number
from replay.steps.verify import Verification


def verify_table(log: Path, found: Verification) -> RenderableType:
    """Return what was found as a table."""
    table = Table.grid(padding=(0, 2))
    rows = {"log": str(log), "compared": found.where, "reproduce": _reproduce(found)}
    rows["proved bit for bit"] = _proved(found)
    if found.deviation == found.deviation:
        rows["largest deviation"] = f"{number(found.deviation, 2)} of a gradient's norm"
    if found.proof is not None:
        rows["largest drift"] = f"{number(found.proof.drift, 2)} of the way between two snapshots"
    rows["first that differs"] = "none" if found.first is None else f"step {found.first}"
    if found.first is not None:
        rows["likely causes"] = _causes(found)
    if found.scaled_outside:
        count = len(found.scaled_outside)
        rows["scaled outside"] = f"the gradients of {count} steps, as clipping does"
    if found.unsplit is not None and found.proof is None:
        rows["not compared"] = f"what {found.unsplit} made of the gradients: it is not split"
    for name, text in rows.items():
        table.add_row(name, literal(text))
    return table


def verify_json(log: Path, found: Verification) -> dict[str, Any]:
    """Return what was found as plain values."""
    proof = found.proof
    first, last = found.asked[0], found.asked[-1] + 1
    return {
        "log": str(log),
        "steps": [first, last],
        "compared": len(found.steps),
        "reproduce": found.finding is None,
        "finding": found.finding,
        "first_step_that_differs": found.first,
        "largest_deviation": plain(found.deviation),
        "scaled_outside": found.scaled_outside,
        "update_checked": found.unsplit is None or proof is not None,
        "proof": None if proof is None else {**proof.facts, "causes": proof.reasons},
    }


def _reproduce(found: Verification) -> str:
    if found.finding is None:
        return f"all {len(found.steps)}" if len(found.steps) > 1 else "yes"
    return f"{len(found.steps)}, then not: the error says more"


def _proved(found: Verification) -> str:
    if found.proof is None:
        return "not needed: the parameters of every step are on file"
    taken = found.proof.proved + len(found.proof.unproved)
    return f"{found.proof.proved} of {taken} steps taken again"


def _causes(found: Verification) -> str:
    reasons = [] if found.finding is None else [found.finding]
    reasons += [] if found.proof is None else found.proof.reasons
    return "\n".join(f"{k}. {reason}" for k, reason in enumerate(reasons, start=1))
