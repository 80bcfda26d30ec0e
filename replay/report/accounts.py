"""What methods account for, test example by test example, and in words what that means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.methods.names import NAMES
from replay.report.tables import Cell, Table, example, numeric
from replay.report.views import Views
from replay.results.influence import Influence
from replay.results.summary import number
from tracer.records import ID

_NEAR = 0.1  # of the measured drop


@dataclass(frozen=True)
class Miss:
    """A test example of which a method accounts for something else than was measured.

    Attributes:
        test_id: The test example.
        method: The method.
        accounts: What its terms add up to, without the residual.
        measured: The measured drop.
    """

    test_id: ID
    method: str
    accounts: float
    measured: float

    @property
    def says(self) -> str:
        """What happened, in a sentence."""
        what = "rose" if self.measured < 0 else "fell"
        sign = "a fall" if self.accounts > 0 else "a rise"
        return (
            f"{self.method} accounts for {sign} of {number(abs(self.accounts), 3)}; the test value "
            f"{what} by {number(abs(self.measured), 3)}."
        )


def misses(influence: Influence) -> list[Miss]:
    """Return where methods that predict are off by over 10 % of the measured drop.

    Those of the wrong sign come first, and of these the farthest off.
    """
    found = []
    for method, terms in influence.completeness.items():
        if method in NAMES and NAMES[method].measured:
            continue
        measured, residual = terms["measured"], terms["residual"]
        for j in np.flatnonzero(~(np.abs(residual) <= _NEAR * np.abs(measured))):
            accounts = float(measured[j] - residual[j])
            found.append(Miss(influence.test_ids[j], method, accounts, float(measured[j])))
    return sorted(found, key=_badness, reverse=True)


def accounts_table(influence: Influence, views: Views) -> Table:
    """Return what each method accounts for beside what was measured, a row for each example."""
    totals = influence.completeness
    columns = ["test example", "measured drop"]
    for method in totals:
        columns += [f"{method} accounts for", f"{method} residual"]
    missed = {(miss.test_id, miss.method) for miss in misses(influence)}
    rows = []
    for j, identity in enumerate(influence.test_ids):
        cells: list[Cell] = [example(views.test(identity))]
        cells.append(numeric(next(iter(totals.values()))["measured"][j]))
        for method, terms in totals.items():
            mark = "miss" if (identity, method) in missed else ""
            cells.append(numeric(terms["measured"][j] - terms["residual"][j], mark))
            cells.append(numeric(terms["residual"][j], mark))
        rows.append(cells)
    return Table(columns, rows, "what each method accounts for")


def _badness(miss: Miss) -> tuple[bool, float]:
    gap = abs(miss.accounts - miss.measured)
    return miss.accounts * miss.measured < 0, gap if np.isfinite(gap) else np.inf
