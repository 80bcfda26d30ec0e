"""Tables that fill up while a run is replayed, and can be added to each other.

Several processes may each fill the tables of the same question with some of its parts (a chunk of
test examples over some steps); the sum is the table of all parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.methods.table import METHODS
from replay.results.influence import Influence
from replay.results.room import Room
from replay.results.variables import VALUES
from replay.session.question import Question
from replay.session.step_result import TERMS
from tracer.errors import PrecisionWarning, shown
from tracer.records import ID

_SHARE = 1e-3  # of the scores without their signs: by what they may miss the data part


_HALF = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # units in the last place


def _dtypes(attributes: Mapping[str, str | int | float]) -> str:
    return str(attributes.get("gradient_dtype", ""))


def _remedy(update_rule: str) -> str:
    """Return what an update rule does to gradients that are rounding, and what helps."""
    if "Rprop" in update_rule:  # which decides by their signs
        return (
            "Rprop takes whole steps by their signs, others in another dtype.\n  1. Train without "
            "such parameters: bias=False in front of a BatchNorm."
        )
    return (
        "Adam and RMSprop magnify them.\n  1. Compute gradients in float64: dtype=torch.float64 "
        "(--dtype float64)."
    )


class ScoreTables:
    """Scores, drops and completeness terms of m test examples over a window of steps.

    Args:
        question: The examples, methods and steps.
        room: Where they are; by default in memory.
    """

    def __init__(self, question: Question, room: Room | None = None) -> None:
        self.question = question
        self._zeros = zeros = (room or Room()).zeros
        self._column = {identity: k for k, identity in enumerate(question.train_ids)}
        steps, m, n = len(question.steps), len(question.test_ids), len(question.train_ids)
        walking = [method.name for method in question.walking if method.about.accounts]
        terms = [term for term in TERMS if question.names is not None or term != "elsewhere"]
        size = len(question.periods), m, n
        self._scores = {method.name: zeros(size) for method in question.methods}
        self._terms = {name: {term: zeros((steps, m)) for term in terms} for name in walking}
        self._drops = {name: zeros((steps, m)) for name in walking}
        self._earned = {name: np.zeros((2, m)) for name in walking}  # in all, and without signs
        self._values = {name: np.full(m, np.nan) for name in VALUES}
        self._quadrature: dict[str, NDArray[Any]] = {}
        if question.refines:
            self._quadrature = {
                "split_error": zeros((steps, m)),
                "theta_inside": zeros((steps, m), bool),
                "gradients": zeros((steps, m), np.int64),
            }
            self._quadrature["split_error"].fill(np.nan)

    def add_step(
        self, rows: slice, index: int, ids: Sequence[ID], found: Mapping[str, NDArray[Any]]
    ) -> None:
        """Add one step for the test examples in ``rows``.

        Args:
            rows: Their places.
            index: The step.
            ids: IDs of its occurrences.
            found: What a pass found at it.
        """
        t, period = index - self.question.steps.start, self.question.periods.of_step(index)
        self.add_values(index, rows, found["before"])
        self.add_values(index + 1, rows, found["after"])
        places = np.array([self._column.get(z, -1) for z in ids], dtype=np.int64)
        occurrences = np.flatnonzero(places >= 0)
        columns = places[occurrences]
        for name in (method.name for method in self.question.walking):
            earned = found[f"credits/{name}"]
            # np.add.at: an ID that stands twice in a batch counts twice
            into = self._scores[name][period].T[:, rows]
            np.add.at(into, columns, earned[occurrences])
            if not METHODS[name].about.accounts:
                continue
            self._earned[name][:, rows] += earned.sum(0), np.abs(earned).sum(0)
            for table, values in zip(
                self._terms[name].values(), found[f"terms/{name}"], strict=True
            ):
                table[t, rows] = values
            self._drops[name][t, rows] = found[f"predicted/{name}"]
        for name, table in self._quadrature.items():
            table[t, rows] = found[name]

    def add_values(self, state: int, rows: slice, values: NDArray[np.float64]) -> None:
        """Keep the values of test examples at a state, if it is the first or the last."""
        for name, end in zip(VALUES, self.question.ends, strict=True):
            if state == end:
                self._values[name][rows] = values

    def add_scores(
        self, method: str, state: int, rows: slice, columns: slice, scores: NDArray[np.float64]
    ) -> None:
        """Add to a block of a method's scores, in the period of a state."""
        period = self.question.periods.of_state(state)
        self._scores[method][period, rows, columns] += scores

    def __add__(self, other: ScoreTables) -> ScoreTables:
        """Return the tables of the parts that either holds; no part may be in both.

        Rows that only one of them fills are bitwise its own; where both credit the same pair of
        examples (other steps of the run), float64 sums are rounded once more.

        Raises:
            ValueError: They are tables of different questions.
        """
        if self.question != other.question:
            raise ValueError("tables of different questions cannot be added.")
        result = ScoreTables(self.question)
        for name in ("_scores", "_drops", "_earned"):
            mine, theirs = getattr(self, name), getattr(other, name)
            getattr(result, name).update({key: mine[key] + theirs[key] for key in mine})
        for name, terms in self._terms.items():
            others = other._terms[name]
            result._terms[name] = {term: value + others[term] for term, value in terms.items()}
        for name, values in self._values.items():
            result._values[name] = np.where(np.isnan(values), other._values[name], values)
        for name, table in self._quadrature.items():
            theirs = other._quadrature["gradients"] > 0
            result._quadrature[name] = np.where(theirs, other._quadrature[name], table)
        return result

    def _say_half(self, attributes: Mapping[str, str | int | float]) -> None:
        """Warn if scores cancel beyond what gradients in half precision can tell."""
        unit = max((eps for kind, eps in _HALF.items() if kind in _dtypes(attributes)), default=0.0)
        for name, (_, whole) in self._earned.items():
            moved = np.abs(self._terms[name]["data"]).sum(0)
            j = int(np.argmax(unit * whole - moved))
            if unit * whole[j] > moved[j]:
                warnings.warn(
                    f"{name} scores of test example {shown(self.question.test_ids[j])} are "
                    f"{whole[j]:.4g} without their signs, and cancel to steps that move its loss "
                    f"by {moved[j]:.4g}. In {_dtypes(attributes)} that is rounding: some gradients "
                    "cancel over the batch (attention's key biases, for example), and "
                    f"{_remedy(str(attributes['update_rule']))}",
                    PrecisionWarning,
                    stacklevel=4,
                )
                return

    def _summed(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a table's sums over periods."""
        by = self.question.periods.by
        found: NDArray[np.float64] = (
            np.sum(table, 0, out=self._zeros(table.shape[1:])) if by else table[0]
        )
        return found

    def influence(self, attributes: dict[str, str | int | float]) -> Influence:
        """Return the result.

        Warns:
            PrecisionWarning: Scores do not add up to the data part of the loss differences, or
                gradients in half precision leave them nothing but rounding.
        """
        self._say_half(attributes)
        for name, (earned, whole) in self._earned.items():
            data = self._terms[name]["data"].sum(0)
            off = np.abs(earned - data)
            j = int(np.argmax(off - _SHARE * whole))
            if off[j] > _SHARE * whole[j]:
                warnings.warn(
                    f"{name} scores of test example {shown(self.question.test_ids[j])} add up to "
                    f"{earned[j]:.4g}, the data part of its loss difference is "
                    f"{data[j]:.4g}. Some gradients are pure rounding error because they cancel "
                    "over the batch (for example a bias in front of a BatchNorm), and "
                    f"{_remedy(str(attributes['update_rule']))}",
                    PrecisionWarning,
                    stacklevel=3,
                )
        periods = self.question.periods
        parts = {name: np.moveaxis(table, 0, -1) for name, table in self._scores.items()}
        return Influence(
            test_ids=self.question.test_ids,
            train_ids=self.question.train_ids,
            scores={name: self._summed(table) for name, table in self._scores.items()},
            by_period=parts if periods.by else {},
            period_of_step=np.array(periods.of_steps, dtype=np.int64),
            drops=self._drops,
            terms=self._terms,
            quadrature=self._quadrature,
            values=self._values,
            attributes=attributes,
            steps=list(self.question.steps),
        )
