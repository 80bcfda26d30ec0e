"""What takes the counterfactual runs of a bound run, and measures them."""

from __future__ import annotations

import numpy as np

from replay.counterfactual.execution import ChangedExecution
from replay.counterfactual.runs import Runs, Table
from replay.evaluate.binding import BoundModel
from replay.evaluate.copies import models
from replay.evaluate.state import State
from replay.session.alternatives import Alternatives
from replay.session.bound_run import BoundRun


def runs_of(run: BoundRun, asked: Alternatives) -> Runs:
    """Return what takes the runs."""
    device = run.models.device
    own = models(run.task, 2)[0]  # of two, so that one that is handed out again is copied
    bound = BoundModel(own, run.log, device=device, dtype=None)
    chunks = run.chunks.of(asked.test_ids, "test", between=False)

    def measure(state: State, where: str) -> Table:
        return np.concatenate([chunk.values(state, where).cpu().numpy() for chunk in chunks])

    return Runs(
        run.log,
        ChangedExecution(run.log, run.task, bound, device),
        measure,
        asked.marks,
        budget=run.budget // 8,
        allow_mismatch=asked.allow_mismatch,
    )
