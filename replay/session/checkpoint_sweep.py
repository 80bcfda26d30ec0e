"""A sweep over checkpoints: one pass over the states that any choice needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.arguments import listed, one_of, whole
from replay.methods import ideal, tracin, tracincp
from replay.progress import Progress
from replay.results.checkpoint_sweep import CheckpointSweep, Choice, errors_of
from replay.session.bound_run import BoundRun
from replay.session.question import Question
from replay.session.score_tables import ScoreTables
from replay.session.scoring import answered
from replay.states.placements import PLACEMENTS, possible
from tracer.errors import InputError, shown
from tracer.log.read.run_log import RunLog

EXACT = (tracin.METHOD.name, ideal.METHOD.name)
METHODS = (*EXACT, tracincp.METHOD.name)
_OF_SCORES = ("methods", "claims", "checkpoints", "checkpoints_asked", "sign", "unit")


class Sums(ScoreTables):
    """A table of scores for each choice of checkpoints, filled while their states pass.

    Args:
        question: The examples.
        choices: Choices of checkpoints.
    """

    def __init__(self, question: Question, choices: Sequence[Choice]) -> None:
        super().__init__(question)
        size = len(question.test_ids), len(question.train_ids)
        self._choices = [frozenset(one.steps) for one in choices]
        self.tables = [np.zeros(size) for _ in choices]

    def add_scores(
        self, method: str, state: int, rows: slice, columns: slice, scores: NDArray[np.float64]
    ) -> None:
        """Add a block of scores to each choice that has the state."""
        for steps, table in zip(self._choices, self.tables, strict=True):
            if state in steps:
                table[rows, columns] += scores


def chosen_checkpoints(log: RunLog, counts: Any, placements: Any) -> list[Choice]:
    """Return every choice of so many checkpoints, by every placement.

    Args:
        log: The run.
        counts: Numbers of checkpoints.
        placements: Names of placements; None is all that the run has.

    Raises:
        InputError: One is unknown, stands twice, or the run does not have it.
    """
    numbers = [whole("counts", count) for count in _several(counts)]
    names = possible(log) if placements is None else _several(placements)
    for what, found in (("counts", numbers), ("placements", names)):
        if not found or len({*map(str, found)}) < len(found):
            raise InputError(f"{what} are different ones, at least one; found {shown(found)}.")
    ways = [PLACEMENTS[one_of("placements", name, PLACEMENTS)] for name in names]
    return [
        Choice(name, count, tuple(way(log, count)))
        for name, way in zip(names, ways, strict=True)
        for count in numbers
    ]


def _several(value: Any) -> list[Any]:
    found = listed(value)
    return [value] if found is None else found


def swept(
    run: BoundRun, question: Question, choices: list[Choice], bars: Progress
) -> CheckpointSweep:
    """Return how far each choice of checkpoints is from the exact methods.

    Args:
        run: The run.
        question: All methods, at every state that any choice has.
        choices: Choices of checkpoints.
        bars: Where progress is shown.
    """
    sums = Sums(question, choices)
    exact = answered(run, question, bars, sums)
    errors = {method: errors_of(exact.scores[method], sums.tables) for method in EXACT}
    facts = {k: v for k, v in exact.attributes.items() if k not in _OF_SCORES}
    return CheckpointSweep(exact.test_ids, choices, errors, facts)
