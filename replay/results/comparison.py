"""Two results beside each other: two seeds, or a part of the model against all of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replay.arguments import listed, whole
from replay.results.agreement import METRICS, Agreement, Comparison
from replay.results.influence_data import InfluenceData
from replay.results.row import RankedRow
from tracer.errors import InputError, shown
from tracer.records import ID


def compare(
    a: InfluenceData, b: InfluenceData, *, names: Sequence[str] = ("a", "b"), k: int = 10
) -> Agreement:
    """Compare the methods that two results have in common, on the examples that both have.

    Args:
        a: A result.
        b: Another one, of the same run or not.
        names: What the two are called: a pair is ``("a tracin", "b tracin")``.
        k: Size of the top-k overlaps; NaN of no more training examples in common than that.

    Raises:
        InputError: They have no method, test example or training example in common.
    """
    for found in (a, b):
        if not isinstance(found, InfluenceData):
            raise InputError(f"compare takes two results of influence, found {shown(found)}.")
    called = listed(names)
    if called is None or len(called) != 2 or len({*map(str, called)}) != 2:
        raise InputError(f"names are two different names, found {shown(names)}.")
    methods = [method for method in a.scores if method in b.scores]
    tests, trains = _shared(a.test_ids, b.test_ids), _shared(a.train_ids, b.train_ids)
    common: dict[str, Sequence[object]] = {
        "method": methods,
        "test example": tests,
        "training example": trains,
    }
    for what, some in common.items():
        if not some:
            raise InputError(
                f"the two results have no {what} in common: {_some(a, what)} ... and "
                f"{_some(b, what)} ...; compute one of them for those of the other."
            )
    k = min(whole("k", k), len(trains))
    rows = []
    for method in methods:
        left, right = (found.scores[method] for found in (a, b))
        columns = np.array(trains).T
        values = [
            RankedRow(left[i, columns[0]], k).metrics(RankedRow(right[j, columns[1]], k))
            for i, j in tests
        ]
        pair = f"{called[0]} {method}", f"{called[1]} {method}"
        rows += [Comparison(pair, m, np.array([one[m] for one in values])) for m in METRICS]
    return Agreement(rows, k)


def _shared(left: Sequence[ID], right: Sequence[ID]) -> list[tuple[int, int]]:
    """Return the places of shared IDs in two lists, in the order of the first."""
    places = {identity: place for place, identity in enumerate(right)}
    return [(i, places[one]) for i, one in enumerate(left) if one in places]


def _some(found: InfluenceData, what: str) -> str:
    lists: dict[str, Sequence[ID]] = {"method": list(found.scores), "test example": found.test_ids}
    some = lists.get(what, found.train_ids)
    return ", ".join(map(shown, some[:3]))
