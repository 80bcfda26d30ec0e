"""Exact influence of training examples, computed from a traced run."""

from typing import TYPE_CHECKING

from tracer.deferred import deferred

if TYPE_CHECKING:
    from replay.loading import load_task
    from replay.results.checkpoint_sweep import CheckpointSweep
    from replay.results.comparison import compare
    from replay.results.counterfactual import Counterfactual
    from replay.results.influence import Influence
    from replay.results.self_influence import SelfInfluence
    from replay.session.replay import Replay
    from replay.task import Task
    from tracer.rules.filter import Filter
    from tracer.rules.rule import UpdateRule

    __version__: str

__all__ = [
    "CheckpointSweep",
    "Counterfactual",
    "Filter",
    "Influence",
    "Replay",
    "SelfInfluence",
    "Task",
    "UpdateRule",
    "__version__",
    "compare",
    "load_task",
]

_HOMES = {
    "CheckpointSweep": "replay.results.checkpoint_sweep",
    "Counterfactual": "replay.results.counterfactual",
    "Filter": "tracer.rules.filter",
    "Influence": "replay.results.influence",
    "Replay": "replay.session.replay",
    "SelfInfluence": "replay.results.self_influence",
    "Task": "replay.task",
    "UpdateRule": "tracer.rules.rule",
    "compare": "replay.results.comparison",
    "load_task": "replay.loading",
}
__getattr__ = deferred(__name__, _HOMES)


def __dir__() -> list[str]:
    """List what is not imported yet, too."""
    return sorted({*globals(), *__all__})
