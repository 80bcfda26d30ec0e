"""The mislabel view: the training examples that moved their own loss most."""

from __future__ import annotations

from replay.report.study import Study
from replay.report.tables import Table, counted, example, numeric
from replay.report.views import Views
from tracer.records import ID

_MOST = 20


def examined(study: Study) -> list[ID]:
    """Return the training examples that the view names."""
    found = study.self_influence
    return [] if found is None else found.top(k=_MOST, by=next(iter(found.scores)))[0]


def mislabelled_table(study: Study, views: Views) -> Table | None:
    """Return the examples with the largest self-influence and their scores; None without one."""
    found = study.self_influence
    if found is None:
        return None
    places = {identity: place for place, identity in enumerate(found.train_ids)}
    rows = [
        [
            example(views.train(identity)),
            *(numeric(scores[places[identity]]) for scores in found.scores.values()),
            counted(int(found.visits[places[identity]])),
        ]
        for identity in examined(study)
    ]
    return Table(["training example", *found.scores, "visits"], rows, "largest self-influence")
