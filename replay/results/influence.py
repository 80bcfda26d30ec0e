"""The result of influence: labelled scores, drops and terms of completeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replay.arguments import flag, place, whole
from replay.progress import Progress
from replay.results.agreement import Agreement, compare
from replay.results.counterfactual import Counterfactual
from replay.results.earlier import warn_of_change
from replay.results.file import Content, open_result, write_result
from replay.results.influence_data import InfluenceData
from replay.results.truth import compare_with_truth
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
            k: Size of the top-k overlaps; all examples, if there are fewer.
            progress: Show progress on stderr.

        Raises:
            InputError: The truth is of another run, or of other examples.
        """
        k, count = whole("k", k), len(self.test_ids)
        with Progress(flag("progress", progress)) as bars:
            advance = bars.task("comparing methods", count)
            if truth is None:
                return compare(self.scores, k=k, advance=advance)
            _require_same_run(self.attributes, truth)
            ids = self.test_ids, self.train_ids
            return compare_with_truth(self.scores, *ids, truth, k=k, advance=advance)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write HDF5 with the dimensions ``test``, ``train`` and ``step``.

        It is written beside its place and moved there when whole.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is off.
            InputError: It is the run's log or task, or no regular file, or cannot be written.
        """
        names = {"methods": self.scores, "terms": next(iter(self.terms.values()), {})}
        lists = {name: " ".join(some) for name, some in names.items()}
        count = next((len(drops) for drops in self.drops.values()), 0)
        labels: dict[str, Sequence[ID]] = {
            "test": self.test_ids,
            "train": self.train_ids,
            "step": self.steps or list(range(count)),
        }
        if self.periods:
            labels["period"] = self.periods
        facts = {**self.attributes, **lists}
        warn_of_change(place("a result", path), self.test_ids, self.values, self.attributes)
        write_result(
            place("a result", path),
            INFLUENCE,
            labels,
            self._variables(),
            facts,
            overwrite=overwrite,
        )

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


def _require_same_run(attributes: Mapping[str, object], truth: Any) -> None:
    if not isinstance(truth, Counterfactual):
        raise InputError(
            "truth must be what Replay.leave_one_out, subsets or counterfactual return, or "
            f"Counterfactual.load; found {shown(truth)}."
        )
    ours, theirs = (str(facts.get("run_uuid")) for facts in (attributes, truth.attributes))
    if ours != theirs:
        raise InputError(
            f"the scores are of the run {ours}, and the truth is of the run {theirs}; compute one "
            "of them along the other's log."
        )
