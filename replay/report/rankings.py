"""For each test example its proponents and opponents, as tables with what they are."""

from __future__ import annotations

from dataclasses import dataclass

from replay.methods.names import reference
from replay.plots.ranking import strongest
from replay.report.figures import Drawing, over_time
from replay.report.study import Study
from replay.report.tables import Cell, Table, counted, example, numeric
from replay.report.views import View, Views
from tracer.records import ID

MOST = 20  # test examples that a page shows


@dataclass(frozen=True)
class Ranking:
    """The strongest examples of one test example.

    Attributes:
        test: The test example.
        proponents: The strongest proponents, the strongest first.
        opponents: The strongest opponents, the strongest first.
        over_time: When they earned their scores, where that is known.
    """

    test: View
    proponents: Table
    opponents: Table
    over_time: list[Drawing]


def named(study: Study) -> list[ID]:
    """Return the training examples that the rankings name."""
    influence = study.influence
    method, tests = reference(influence.scores), influence.test_ids[:MOST]
    return [i for test in tests for i in strongest(influence, test, method, study.k)[0]]


def rankings(study: Study, views: Views) -> list[Ranking]:
    """Return the rankings of the first test examples."""
    return [_ranking(study, views, test) for test in study.influence.test_ids[:MOST]]


def _ranking(study: Study, views: Views, test: ID) -> Ranking:
    influence, method = study.influence, reference(study.influence.scores)
    ids, scores = strongest(influence, test, method, study.k)
    up = [identity for identity, score in zip(ids, scores, strict=True) if score > 0]
    down = [identity for identity, score in zip(ids, scores, strict=True) if score < 0][::-1]
    proponents, opponents = (
        _table(study, views, test, some, f"{kind} of test example {test}")
        for some, kind in ((up, "proponents"), (down, "opponents"))
    )
    return Ranking(views.test(test), proponents, opponents, over_time(study, test))


def _table(study: Study, views: Views, test: ID, ids: list[ID], name: str) -> Table:
    influence = study.influence
    row = influence.test_ids.index(test)
    columns = ["training example", *influence.scores, *(["visits"] if study.run else [])]
    places = {identity: place for place, identity in enumerate(influence.train_ids)}
    rows: list[list[Cell]] = []
    for identity in ids:
        view = views.train(identity)
        scores = [numeric(table[row, places[identity]]) for table in influence.scores.values()]
        visits = [] if view.visits is None else [counted(view.visits)]
        rows.append([example(view), *scores, *visits])
    return Table(columns, rows, name)
