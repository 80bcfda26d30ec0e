"""The result of self-influence: a table over training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.arguments import flag, one_of, place, whole
from replay.results.exporting import Exported, export, plain_table
from replay.results.file import Content, open_result, write_result
from replay.results.labelled import to_frame
from replay.results.summary import summary
from replay.results.variables import (
    OWN_DROP,
    SELF,
    SELF_BY_PERIOD,
    SELF_INFLUENCE,
    SELF_SCORES,
    VISITS,
    VISITS_BY_PERIOD,
)
from tracer.records import ID


@dataclass(frozen=True, repr=False)
class SelfInfluence:
    """Self-influence of N training examples.

    Attributes:
        train_ids: N examples.
        scores: ``"self"``, ``"own_drop"`` and, as the baseline, ``"loss"``, the mean of the losses
            at the example's visits (NaN: none); with checkpoints also the diagonal of ``tracincp``.
            Float64 ``(N,)``, in units of the training loss.
        visits: How often the run visited each, ``(N,)``.
        attributes: Run, update rule, versions, choices.
        by_period: The same in each of P periods, ``(N, P)``; sums of all but ``"loss"`` are the
            scores. Empty without ``by=``.
        visits_by_period: Visits in each, ``(N, P)``.
        periods: The P periods: epochs, or first steps.
    """

    train_ids: list[ID]
    scores: dict[str, NDArray[np.float64]]
    visits: NDArray[np.int64]
    attributes: dict[str, str | int | float]
    by_period: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    visits_by_period: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((0, 0), dtype=np.int64)
    )
    periods: list[int] = field(default_factory=list)

    def __repr__(self) -> str:
        rows = {
            "scores": ", ".join(self.scores),
            "visits": int(self.visits.sum()),
            "periods": len(self.periods) or "",
            "steps": self.attributes.get("window"),
            "run": self.attributes.get("log"),
        }
        return summary(f"SelfInfluence of {len(self.train_ids)} training examples", rows)

    def top(self, k: int = 10, *, by: str = "self") -> tuple[list[ID], NDArray[np.float64]]:
        """Return the k examples (all, if there are fewer) with the largest score, largest first.

        Raises:
            InputError: There is no such score.
        """
        scores, count = self.scores[one_of("by", by, self.scores)], whole("k", k)
        order = np.argsort(-scores, kind="stable")[:count]
        return [self.train_ids[i] for i in order], scores[order]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``: a row for each training example, a column for each score.

        Raises:
            InputError: pandas is not installed (the extra ``tables``).
        """
        return to_frame(self._table())

    def export(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the scores for other programs, by the file's ending.

        ``.csv`` and ``.parquet`` hold a row for each training example, with its scores and visits;
        ``.npz`` an array of each; ``.json`` everything. Periods are in the latter two.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: The ending is another, a library is missing, or it cannot be written.
        """
        replaces, table = flag("overwrite", overwrite), self._table()
        given = Exported(
            columns=tuple(table),
            rows=lambda: zip(*(column.tolist() for column in table.values()), strict=True),
            table=lambda: table,
            arrays=lambda: {**table, **self._of_periods()},
            plain=self.to_plain,
            attributes=self.attributes,
        )
        export(given, place("scores", path), overwrite=replaces)

    def to_plain(self) -> dict[str, Any]:
        """Return everything as plain values; what is not a number is None."""
        result = {
            "attributes": dict(self.attributes),
            "train_ids": self.train_ids,
            "visits": self.visits.tolist(),
            **{name: plain_table(values) for name, values in self.scores.items()},
        }
        if not self.periods:
            return result
        parts = {name: plain_table(values) for name, values in self.by_period.items()}
        visits = self.visits_by_period.tolist()
        return {**result, "periods": self.periods, "by_period": parts | {"visits": visits}}

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimension ``train``, and ``period`` if there are some.

        It is written beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        labels: dict[str, Sequence[ID]] = {"train": self.train_ids}
        if self.periods:
            labels["period"] = self.periods
        write_result(
            *(place("a result", path), SELF_INFLUENCE, labels, self._variables(), self.attributes),
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path) -> SelfInfluence:
        """Read what ``save`` wrote, by this version or an earlier one.

        Raises:
            InputError: The file is missing or holds something else.
        """
        with open_result(path, SELF_INFLUENCE) as file:
            needed = {SELF, OWN_DROP}  # the first files held no others
            kinds = {n: kind for n, kind in SELF_SCORES.items() if kind in needed or file.has(kind)}
            found = cls(
                train_ids=file.labels["train"],
                scores={name: file.read(kind) for name, kind in kinds.items()},
                visits=file.read(VISITS),
                attributes=file.attributes,
            )
            if "period" not in file.labels:
                return found
            return replace(
                found,
                by_period={name: file.read(SELF_BY_PERIOD, term=name).T for name in kinds},
                visits_by_period=file.read(VISITS_BY_PERIOD).T,
                periods=[int(period) for period in file.labels["period"]],
            )

    def _table(self) -> dict[str, NDArray[Any]]:
        return {"train": np.array(self.train_ids), **self.scores, "visits": self.visits}

    def _of_periods(self) -> dict[str, Any]:
        if not self.periods:
            return {}
        parts = {f"{name}_by_period": values for name, values in self.by_period.items()}
        return {"periods": self.periods, **parts, "visits_by_period": self.visits_by_period}

    def _variables(self) -> Content:
        for name, scores in self.scores.items():
            yield SELF_SCORES[name], "", "", scores
        yield VISITS, "", "", self.visits
        for name, parts in self.by_period.items():
            yield SELF_BY_PERIOD, "", name, parts.T
        if self.periods:
            yield VISITS_BY_PERIOD, "", "", self.visits_by_period.T
