"""How well methods foretell counterfactual runs, test example by test example.

For each test example, x is what the runs measured, and y what a method predicts of each: the sum of
the scores of the examples that the run lacks. Where each run lacks one example, x and y are scores
of examples; else Spearman's correlation over runs is the linear datamodeling score, LDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replay.results.agreement import METRICS, Agreement, Comparison
from replay.results.counterfactual import Counterfactual
from replay.results.row import RankedRow, Row
from tracer.errors import InputError, shown
from tracer.records import ID

LDS = "lds"
_OF_SUBSETS = {"pearson": "pearson", "spearman": LDS, "sign": "sign", "slope": "slope"}
_OF_SUBSETS |= {"total_ratio": "total_ratio"}


@dataclass(frozen=True)
class Foretold:
    """What R counterfactual runs did to one test example, and what methods predict of each.

    Attributes:
        test_id: The test example.
        measured: Its change in each run that did not diverge, ``(R,)``.
        predicted: By method, the sum of the scores of what each run lacks, ``(R,)``.
    """

    test_id: ID
    measured: Row
    predicted: dict[str, Row]


def foretold(
    scores: Mapping[str, Row],
    test_ids: Sequence[ID],
    train_ids: Sequence[ID],
    truth: Counterfactual,
) -> list[Foretold]:
    """Return what methods predict of counterfactual runs, for each test example of both.

    Raises:
        InputError: The truth has none of the test examples, or changed others than are scored.
    """
    require_common_tests(test_ids, truth.test_ids)
    rows = {identity: row for row, identity in enumerate(truth.test_ids)}
    both = [(j, rows[identity]) for j, identity in enumerate(test_ids) if identity in rows]
    weights, finite = _weights(truth, train_ids), _finite(truth)
    return [
        Foretold(
            test_ids[j],
            truth.change[finite, row],
            {method: _predicted(table[j], weights)[finite] for method, table in scores.items()},
        )
        for j, row in both
    ]


def require_same_run(attributes: Mapping[str, object], run: str) -> None:
    """Raise InputError unless scores are of single examples of a run, by the ID of the run."""
    if "grouped" in attributes:
        raise InputError(
            "the truth is of examples, and this result is of groups of them (influence.by); "
            "compare the result of the examples."
        )
    if str(attributes.get("run_uuid")) != run:
        raise InputError(
            f"the scores are of the run {attributes.get('run_uuid')}, and the truth is of the run "
            f"{run}; compute one of them along the other's log."
        )


def require_common_tests(scores: Sequence[ID], truth: Sequence[ID]) -> None:
    """Raise InputError unless scores and truth have a test example in common."""
    if not {*scores} & {*truth}:
        raise InputError(
            f"the scores are of the test examples {shown(list(scores[:3]))} ..., the truth is of "
            f"{shown(list(truth[:3]))} ...; compute one of them for those of the other."
        )


def compare_with_truth(
    scores: Mapping[str, Row],
    test_ids: Sequence[ID],
    train_ids: Sequence[ID],
    truth: Counterfactual,
    *,
    k: int,
    advance: Callable[[], None] = lambda: None,
) -> Agreement:
    """Compare every method with counterfactual runs.

    Args:
        scores: By method, float64 ``(m, N)``.
        test_ids: Their rows; those that the truth has are compared.
        train_ids: Their columns.
        truth: The runs.
        k: Size of the top-k overlaps, where each run lacks one example.
        advance: Called after each test example.

    Raises:
        InputError: As for ``foretold``.
    """
    count = int(_finite(truth).sum())
    metrics = dict(zip(METRICS, METRICS, strict=True)) if truth.is_leave_one_out else _OF_SUBSETS
    k, name = min(k, count), str(truth.attributes.get("protocol", "truth"))
    found: dict[tuple[str, str], list[float]] = {(m, own): [] for m in scores for own in metrics}
    each = foretold(scores, test_ids, train_ids, truth)
    for one in each if k else []:
        measured = RankedRow(one.measured, k)
        for method, predicted in one.predicted.items():
            values = measured.metrics(RankedRow(predicted, k))
            for own in metrics:
                found[method, own].append(values[own])
        advance()
    comparisons = [
        Comparison((name, method), metrics[own], np.array(values))
        for (method, own), values in found.items()
    ]
    return Agreement(comparisons, k, _told(truth, count))


def _weights(truth: Counterfactual, train_ids: Sequence[ID]) -> list[tuple[NDArray[np.int64], Row]]:
    """Return for each run the columns that it changed, and by how much it lowered their weights."""
    columns = {identity: column for column, identity in enumerate(train_ids)}
    missing = [i for change in truth.changes for i in change if i not in columns]
    if missing:
        raise InputError(
            f"the truth is of runs without the training example {shown(missing[0])}, and the "
            "scores have no such column; compute them for all training examples (train_ids=None)."
        )
    return [
        (
            np.array([columns[i] for i in change], dtype=np.int64),
            np.array([1 - factor for factor in change.values()]),
        )
        for change in truth.changes
    ]


def _predicted(row: Row, weights: list[tuple[NDArray[np.int64], Row]]) -> Row:
    return np.array([row[columns] @ less for columns, less in weights])


def _finite(truth: Counterfactual) -> NDArray[np.bool_]:
    """Return which runs did not diverge, ``(R,)``."""
    found: NDArray[np.bool_] = np.all(np.isfinite(truth.change), axis=1)
    return found


def _told(truth: Counterfactual, finite: int) -> str:
    left_out = len(truth.changes) - finite
    return truth.protocol + (f", {left_out} that diverged left out" if left_out else "")
