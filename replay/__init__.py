"""Exact influence of training examples, computed from a traced run."""

from replay.influence import Influence
from replay.run import Replay
from replay.task import Task, load_task

__all__ = ["Influence", "Replay", "Task", "load_task"]
