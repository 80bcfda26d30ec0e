"""The result of influence: labelled scores, drops and terms of completeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replay.arguments import flag, place, whole
from replay.progress import Progress
from replay.results.agreement import Agreement, compare_methods
from replay.results.counterfactual import Counterfactual
from replay.results.earlier import warn_of_change
from replay.results.exporting import export, of_influence
from replay.results.file import Content, open_result, write_result
from replay.results.grouping import Labels, grouped
from replay.results.influence_data import InfluenceData
from replay.results.labelled import columns, to_dataset, to_frame
from replay.results.truth import compare_with_truth, require_same_run
from replay.results.variables import (
    DROPS,
    INFLUENCE,
    PERIOD_OF_STEP,
    QUADRATURE,
    SCORES,
    SCORES_BY_PERIOD,
    TERMS,
    VALUES,
)
from tracer.errors import InputError, shown
from tracer.records import ID


@dataclass(frozen=True, repr=False)
class Influence(InfluenceData):
    """Influence of N training examples on m test examples over T steps.

    Positive = proponent: the example lowered the measured test value.

    Attributes:
        test_ids: Rows, length m.
        train_ids: Columns, length N.
        scores: By method, float64 ``(m, N)``, in units of the measured test value.
        drops: By step, float64 ``(T, m)``: ``"ideal"`` the measured drops, ``"tracin"``
            ``⟨q_t, Δ_t⟩``.
        terms: By method, the terms of the completeness identity, float64 ``(T, m)`` each.
        quadrature: How ``ideal`` was integrated, ``(T, m)``: ``split_error``,
            ``theta_inside``, ``gradients``.
        attributes: Sign, unit, run, update rule, versions, choices.
        steps: The T steps of the run that were looked at.
        values: The measured test values ``"before"`` and ``"after"`` all that was looked at,
            ``(m,)``; other data show in them.
        by_period: By method, what each example earned in each of P periods, ``(m, N, P)``: their
            sums ``by_period[...].sum(-1)`` are the scores. Empty without ``by=``.
        period_of_step: The period of each of the T steps, ``(T,)``: its epoch or its first step.
    """

    def agreement(
        self, *, truth: Counterfactual | None = None, k: int = 10, progress: bool = True
    ) -> Agreement:
        """Compare every pair of methods, or every method with the truth, by test example.

        Args:
            truth: Counterfactual runs of the same run: what a method predicts of each is the sum
                of the scores of the examples that it lacks. Over subsets, Spearman's correlation
                is called ``"lds"``.
            k: Size of the top-k overlaps; NaN of no more examples than that.
            progress: Show progress on stderr.

        Raises:
            InputError: The truth is of another run, or of other examples.
        """
        k, count = whole("k", k), len(self.test_ids)
        with Progress(flag("progress", progress)) as bars:
            advance = bars.task("comparing methods", count)
            if truth is None:
                return compare_methods(self.scores, k=k, advance=advance)
            _require_comparable(self.attributes, truth)
            ids = self.test_ids, self.train_ids
            return compare_with_truth(self.scores, *ids, truth, k=k, advance=advance)

    def by(self, *, train: Labels | None = None, test: Labels | None = None) -> Influence:
        """Return the result of groups instead of examples: classes, sources, anything.

        Everything is summed over the examples of a group, so that the identity still holds.

        Args:
            train: The label of each training example: a list in the order of ``train_ids``, or a
                mapping from IDs. Labels become the columns.
            test: Likewise of test examples, and rows.

        Raises:
            InputError: An example has no label, or labels are neither all integers nor all text.
        """
        return grouped(self, train, test)

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset`` with everything, as ``xarray.open_dataset`` reads the file.

        Raises:
            InputError: xarray is not installed (the extra ``tables``).
        """
        return to_dataset(self._labels(), self._variables(), self.attributes)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` of the scores: columns test, train, method, score.

        Raises:
            InputError: pandas is not installed (the extra ``tables``).
        """
        return to_frame(columns(self))

    def export(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the scores for other programs, by the file's ending.

        ``.csv`` and ``.parquet`` hold a row for each test example, training example and method;
        ``.npz`` an array of each method; ``.json`` everything by test example.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: The ending is another, a library is missing, or it cannot be written.
        """
        replaces = flag("overwrite", overwrite)
        export(of_influence(self), place("scores", path), overwrite=replaces)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimensions ``test``, ``train`` and ``step``.

        It is written beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        names = {"methods": self.scores, "terms": next(iter(self.terms.values()), {})}
        lists = {name: " ".join(some) for name, some in names.items()}
        target = place("a result", path)
        warn_of_change(target, self.test_ids, self.values, self.attributes)
        content, facts = self._variables(), {**self.attributes, **lists}
        write_result(target, INFLUENCE, self._labels(), content, facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Influence:
        """Read what ``save`` wrote, by this version or an earlier one.

        Raises:
            InputError: The file is missing or holds something else.
        """
        with open_result(path, INFLUENCE) as file:
            attributes = file.attributes
            methods = str(attributes["methods"]).split()
            terms = str(attributes.pop("terms")).split()
            walked = [name for name in methods if file.has(DROPS, name)]
            divided = [name for name in methods if file.has(SCORES_BY_PERIOD, name)]
            of_step = file.read(PERIOD_OF_STEP) if file.has(PERIOD_OF_STEP) else np.zeros(0, int)
            parts = {name: file.read(SCORES_BY_PERIOD, name) for name in divided}
            kinds = {name: kind for name, kind in QUADRATURE.items() if file.has(kind)}
            values = {name: kind for name, kind in VALUES.items() if file.has(kind)}
            return cls(
                test_ids=file.labels["test"],
                train_ids=file.labels["train"],
                scores={name: file.read(SCORES, name) for name in methods},
                drops={name: file.read(DROPS, name) for name in walked},
                terms={m: {t: file.read(TERMS, m, t) for t in terms} for m in walked},
                quadrature={name: file.read(kind) for name, kind in kinds.items()},
                attributes=attributes,
                steps=[int(step) for step in file.labels["step"]],
                values={name: file.read(kind) for name, kind in values.items()},
                by_period={name: np.moveaxis(part, 0, -1) for name, part in parts.items()},
                period_of_step=of_step,
            )

    def _labels(self) -> dict[str, Sequence[ID]]:
        count = next((len(drops) for drops in self.drops.values()), 0)
        labels: dict[str, Sequence[ID]] = {
            "test": self.test_ids,
            "train": self.train_ids,
            "step": self.steps or list(range(count)),
        }
        return {**labels, "period": self.periods} if self.periods else labels

    def _variables(self) -> Content:
        for method, scores in self.scores.items():
            yield SCORES, method, "", scores
        for method, drops in self.drops.items():
            yield DROPS, method, "", drops
        for method, terms in self.terms.items():
            for term, values in terms.items():
                yield TERMS, method, term, values
        for name, values in self.quadrature.items():
            yield QUADRATURE[name], "", "", values
        for name, values in self.values.items():
            yield VALUES[name], "", "", values
        for method, parts in self.by_period.items():
            yield SCORES_BY_PERIOD, method, "", np.moveaxis(parts, -1, 0)
        if self.periods:
            yield PERIOD_OF_STEP, "", "", self.period_of_step


def _require_comparable(attributes: Mapping[str, object], truth: Any) -> None:
    if not isinstance(truth, Counterfactual):
        raise InputError(
            "truth must be what Replay.leave_one_out, subsets or counterfactual return, or "
            f"Counterfactual.load; found {shown(truth)}."
        )
    require_same_run(attributes, str(truth.attributes.get("run_uuid")))
