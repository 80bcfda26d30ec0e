"""Scores of groups of examples: of a class, a source, anything that has a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from replay.arguments import listed, plain
from replay.results.influence_data import InfluenceData, Table
from tracer.errors import InputError, shown
from tracer.identities import fault_of, plain_ids
from tracer.records import ID

Labels = Mapping[Any, Any] | Sequence[Any]
Found = TypeVar("Found", bound=InfluenceData)
Groups = dict[ID, NDArray[np.int64]]  # the places of each group's examples, by label


def grouped(found: Found, train: Labels | None, test: Labels | None) -> Found:
    """Return a result of groups instead of examples; see ``Influence.by``."""
    if train is None and test is None:
        raise InputError(
            "expected labels of the training or the test examples, found neither; write "
            "influence.by(train=labels)."
        )
    if train is not None:
        found = _of_columns(found, _groups(train, found.train_ids, "train"))
    if test is not None:
        found = _of_rows(found, _groups(test, found.test_ids, "test"))
    return found


def _groups(labels: Any, ids: Sequence[ID], side: str) -> Groups:
    """Return the groups that labels make, in order.

    Raises:
        InputError: An example has no label, or labels are neither all integers nor all text.
    """
    if isinstance(labels, Mapping):
        missing = [identity for identity in ids if identity not in labels]
        if missing:
            raise InputError(
                f"the labels {side}= have none for the example {shown(missing[0])}; give one for "
                f"each of the result's {len(ids)}."
            )
        found = [plain(labels[identity]) for identity in ids]
    else:
        given = listed(labels)
        if given is None or len(given) != len(ids):
            count = shown(labels) if given is None else f"{len(given)} labels"
            raise InputError(
                f"{side}= takes a label for each of the result's {len(ids)} examples, in their "
                f"order, or a mapping from IDs to labels; found {count}."
            )
        found = given
    found = plain_ids(found)
    fault = fault_of(found)
    if fault:
        raise InputError(
            f"the labels {side}= must be all whole numbers or all text without NUL; {fault}."
        )
    places: dict[ID, list[int]] = {}
    for place, label in enumerate(found):
        places.setdefault(label, []).append(place)
    return {label: np.array(places[label]) for label in sorted(places, key=lambda one: (one,))}


def _summed(table: NDArray[Any], groups: Groups, axis: int) -> Table:
    """Return a table's sums over the examples of each group."""
    parts = [np.take(table, places, axis).sum(axis) for places in groups.values()]
    result: Table = np.stack(parts, axis)
    return result


def _scores(
    found: InfluenceData, groups: Groups, axis: int
) -> tuple[dict[str, Table], dict[str, Table]]:
    """Return scores of groups, and those by period, whose sums they are."""
    scores = {name: _summed(table, groups, axis) for name, table in found.scores.items()}
    parts = {}
    for name, table in found.by_period.items():  # in memory period by period, as they are added
        by_period = _summed(np.moveaxis(table, -1, 0), groups, axis + 1)
        parts[name] = np.moveaxis(np.ascontiguousarray(by_period), 0, -1)
        scores[name] = parts[name].sum(-1)
    return scores, parts


def _of_columns(found: Found, groups: Groups) -> Found:
    scores, by_period = _scores(found, groups, 1)
    return replace(
        found,
        scores=scores,
        by_period=by_period,
        train_ids=list(groups),
        attributes=_told(found, "train"),
    )


def _of_rows(found: Found, groups: Groups) -> Found:
    """Return the sums over groups of test examples; how each was integrated is left out."""
    terms = {
        method: {term: _summed(values, groups, 1) for term, values in terms.items()}
        for method, terms in found.terms.items()
    }
    scores, by_period = _scores(found, groups, 0)
    return replace(
        found,
        scores=scores,
        by_period=by_period,
        test_ids=list(groups),
        drops={name: _summed(values, groups, 1) for name, values in found.drops.items()},
        terms=terms,
        quadrature={},
        values={name: _summed(values, groups, 0) for name, values in found.values.items()},
        attributes=_told(found, "test"),
    )


def _told(found: InfluenceData, side: str) -> dict[str, str | int | float]:
    sides = dict.fromkeys([*str(found.attributes.get("grouped", "")).split(), side])
    return {**found.attributes, "grouped": " ".join(sides)}
