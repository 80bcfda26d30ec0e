"""How the page shows an example: its ID, its text or label, its pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from replay.report.pictures import addresses
from replay.report.study import Study
from replay.showing import Shown
from replay.task import shown_example
from tracer.errors import TaskError
from tracer.records import ID

_MOST = 400  # characters of a text


@dataclass(frozen=True)
class View:
    """An example as the page shows it.

    Attributes:
        identity: Its ID.
        text: Its text or label, cut if it is long.
        more: Characters that were cut.
        pictures: Addresses that hold them.
        visits: How often the run used it; None of test examples, or where no log says.
    """

    identity: ID
    text: str
    more: int
    pictures: tuple[str, ...]
    visits: int | None


class Views:
    """Views of all examples that a page shows, made at once, so that pictures share a budget.

    Args:
        study: Of what.
        test_ids: Test examples.
        train_ids: Training examples.

    Raises:
        TaskError: ``Task.show`` fails.
    """

    def __init__(self, study: Study, test_ids: Iterable[ID], train_ids: Iterable[ID]) -> None:
        keys = [("test", i) for i in dict.fromkeys(test_ids)]
        keys += [("train", i) for i in dict.fromkeys(train_ids)]
        shown = {key: _shown(study, *key) for key in keys}
        given = iter(addresses([p for one in shown.values() for p in one.pictures]))
        visits = {} if study.run is None else study.run.visits
        self._views = {
            (side, identity): View(
                identity,
                one.text[:_MOST],
                max(0, len(one.text) - _MOST),
                tuple(next(given) for _ in one.pictures),
                visits.get(identity, 0) if study.run and side == "train" else None,
            )
            for (side, identity), one in shown.items()
        }

    def test(self, identity: ID) -> View:
        """Return a test example's."""
        return self._views["test", identity]

    def train(self, identity: ID) -> View:
        """Return a training example's."""
        return self._views["train", identity]


def _shown(study: Study, side: str, identity: ID) -> Shown:
    if study.task is None:
        return Shown()
    try:
        return shown_example(study.task, getattr(study.task, side), identity)
    except Exception as error:
        raise TaskError(
            f"task.show failed at the {side} example {identity!r}: {type(error).__name__}: "
            f"{error}.\n"
            "1. Let it return text, an array or an image for every example.\n"
            "2. Check that the task is the one of the run: its data, its keys (--task)."
        ) from error
