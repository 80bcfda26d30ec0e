"""Which door a log's states have: the log itself, or its steps taken again."""

from __future__ import annotations

import torch

from replay.evaluate.binding import BoundModel
from replay.evaluate.copies import models
from replay.evaluate.state import States
from replay.states.execution import Execution
from replay.states.logged import LoggedStates
from replay.states.re_executed import ReExecutedStates
from replay.task import Task
from tracer.log.read.run_log import RunLog


def states_of(log: RunLog, task: Task, device: torch.device, budget: int) -> States:
    """Return the states of a run.

    Args:
        log: The run.
        task: Takes its steps again if need be.
        device: Where.
        budget: Bytes for states in memory.
    """
    if log.is_dense:
        return LoggedStates(log, lambda: taken_again(log, task, device, budget))
    return taken_again(log, task, device, budget)


def taken_again(log: RunLog, task: Task, device: torch.device, budget: int) -> ReExecutedStates:
    """Return states that are computed, whatever the log has; see ``states_of``."""
    own = models(task, 2)[0]  # of two, so that one that is handed out again is copied
    bound = BoundModel(own, log, device=device, dtype=None)
    return ReExecutedStates(log, Execution(log, task, bound, device), budget)
