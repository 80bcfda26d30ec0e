"""What a page is made from: a result, and what else is known of its run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay.results.checkpoint_sweep import CheckpointSweep
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.self_influence import SelfInfluence
from replay.task import Task
from tracer.errors import LogError
from tracer.log.read.run_log import open_log
from tracer.records import ID


@dataclass(frozen=True)
class RunFacts:
    """What the log says of the steps that a result looked at.

    Attributes:
        visits: How often they used each training example.
        rates: The largest learning rate of each, over parameter groups, ``(T,)``.
    """

    visits: dict[ID, int]
    rates: NDArray[np.float64]


@dataclass(frozen=True)
class Study:
    """What a page is made from.

    Attributes:
        influence: The result.
        truth: Counterfactual runs of the same run.
        self_influence: Self-influence along the same run.
        sweep: Error of checkpoint sums along the same run.
        task: Shows what examples are; without one, the page has their IDs alone.
        why_no_task: Why there is none, as the page says it.
        run: What the log says; None where it is not at hand.
        k: Proponents, and as many opponents, of each test example.
    """

    influence: Influence
    truth: Counterfactual | None = None
    self_influence: SelfInfluence | None = None
    sweep: CheckpointSweep | None = None
    task: Task | None = None
    why_no_task: str = "none was given"
    run: RunFacts | None = None
    k: int = 5


def run_facts(influence: Influence, folder: Path | None = None) -> RunFacts | None:
    """Return what a result's log says, if it is at hand and holds the same run.

    Args:
        influence: The result.
        folder: Where to look as well as where the result says: beside the result.
    """
    named = Path(str(influence.attributes.get("log", "")))
    places = [named] if folder is None else [named, folder / named.name]
    for path in places:
        if not named.name or not path.is_file():
            continue
        try:
            return _read(path, influence)
        except LogError:
            continue
    return None


def _read(path: Path, influence: Influence) -> RunFacts | None:
    with open_log(path) as log:
        if str(log.metadata["run_uuid"]) != influence.attributes.get("run_uuid"):
            return None
        steps = [log.step(t) for t in influence.steps or range(len(log))]
        visits: Counter[ID] = Counter(i for step in steps for i in step.batch_ids)
        rates = np.array([max(step.learning_rate) for step in steps])
        return RunFacts(dict(visits), rates)
