"""The result of a sweep: how far sums over checkpoints are from what went through every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.arguments import one_of, place
from replay.results.file import Content, open_result, write_result
from replay.results.row import RankedRow
from replay.results.summary import summary
from replay.results.variables import CHECKPOINT_ROW, CHECKPOINT_SWEEP, ERROR
from tracer.records import ID

Table = NDArray[np.float64]
ERRORS = ("pearson", "spearman", "relative_error", "scaled_error", "total_ratio")


@dataclass(frozen=True)
class Choice:
    """One choice of checkpoints: a row of a sweep.

    Attributes:
        placement: ``"even"``, ``"epochs"``, ``"early"``, ``"late"`` or ``"rate"``.
        count: How many were asked for.
        steps: The different states that were summed over, as ``checkpoints=`` takes them.
    """

    placement: str
    count: int
    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.placement} {self.count}"


@dataclass(frozen=True, repr=False)
class CheckpointSweep:
    """Error of sums over checkpoints, by number and placement, against exact scores.

    Attributes:
        test_ids: m test examples.
        choices: R choices of checkpoints.
        errors: By exact method and measure, float64 ``(R, m)``: correlations of scores over
            training examples; ``relative_error``, ``‖sum − exact‖ / ‖exact‖``; ``scaled_error``,
            the same after the best common factor; ``total_ratio``, the sum's total by the exact.
        attributes: Run, unit, versions, choices.
    """

    test_ids: list[ID]
    choices: list[Choice]
    errors: dict[str, dict[str, Table]]
    attributes: dict[str, str | int | float]

    def __repr__(self) -> str:
        rows = {
            "placements": ", ".join(dict.fromkeys(one.placement for one in self.choices)),
            "against": ", ".join(self.errors),
            "errors": ", ".join(ERRORS),
            "run": self.attributes.get("log"),
        }
        title = f"CheckpointSweep: {len(self.choices)} choices of checkpoints, "
        return summary(f"{title}{len(self.test_ids)} test examples", rows)

    def median(self, measure: str, *, against: str) -> Table:
        """Return the median of a measure over the test examples where it is defined, ``(R,)``.

        Args:
            measure: ``"pearson"``, ``"spearman"``, ``"relative_error"``, ``"scaled_error"`` or
                ``"total_ratio"``.
            against: The exact method.

        Raises:
            InputError: There is no such measure or method.
        """
        tables = self.errors[one_of("against", against, self.errors)]
        table = tables[one_of("measure", measure, tables)]
        known = [row[~np.isnan(row)] for row in table]
        return np.array([np.median(row) if len(row) else np.nan for row in known])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimensions ``row``, ``test`` and ``checkpoint``.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        labels: dict[str, Sequence[ID]] = {
            "row": list(map(str, self.choices)),
            "test": self.test_ids,
            "checkpoint": [step for one in self.choices for step in one.steps],
        }
        target, facts = (
            place("a result", path),
            {**self.attributes, "against": " ".join(self.errors)},
        )
        content = self._variables()
        write_result(target, CHECKPOINT_SWEEP, labels, content, facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> CheckpointSweep:
        """Read what ``save`` wrote.

        Raises:
            InputError: The file is missing or holds something else.
        """
        with open_result(path, CHECKPOINT_SWEEP) as file:
            steps: list[list[int]] = [[] for _ in file.labels["row"]]
            rows = file.read(CHECKPOINT_ROW).tolist()
            for row, step in zip(rows, file.labels["checkpoint"], strict=True):
                steps[row].append(int(step))
            named = [str(label).rpartition(" ") for label in file.labels["row"]]
            methods = str(file.attributes.pop("against")).split()
            return cls(
                test_ids=file.labels["test"],
                choices=[
                    Choice(placement, int(count), tuple(used))
                    for (placement, _, count), used in zip(named, steps, strict=True)
                ],
                errors={m: {e: file.read(ERROR, m, e) for e in ERRORS} for m in methods},
                attributes=file.attributes,
            )

    def _variables(self) -> Content:
        for method, tables in self.errors.items():
            for measure, values in tables.items():
                yield ERROR, method, measure, values
        counts = [len(one.steps) for one in self.choices]
        rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        yield CHECKPOINT_ROW, "", "", rows


def errors_of(exact: Table, sums: Sequence[Table]) -> dict[str, Table]:
    """Return every measure of R tables of sums ``(m, N)`` against an exact one, ``(R, m)`` each."""
    found = np.full((len(ERRORS), len(sums), len(exact)), np.nan)
    for j, row in enumerate(exact):
        truth = RankedRow(row, 1)
        for i, table in enumerate(sums):
            measured = truth.errors(RankedRow(table[j], 1))
            found[:, i, j] = [measured[name] for name in ERRORS]
    return dict(zip(ERRORS, found, strict=True))
