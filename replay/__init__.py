"""Exact influence of training examples, computed from a traced run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.loading import load_task
    from replay.results.checkpoint_sweep import CheckpointSweep
    from replay.results.comparison import compare
    from replay.results.counterfactual import Counterfactual
    from replay.results.influence import Influence
    from replay.results.self_influence import SelfInfluence
    from replay.session.replay import Replay
    from replay.task import Task

    __version__: str

__all__ = [
    "CheckpointSweep",
    "Counterfactual",
    "Influence",
    "Replay",
    "SelfInfluence",
    "Task",
    "__version__",
    "compare",
    "load_task",
]

_HOMES = {
    "CheckpointSweep": "results.checkpoint_sweep",
    "Counterfactual": "results.counterfactual",
    "Influence": "results.influence",
    "Replay": "session.replay",
    "SelfInfluence": "results.self_influence",
    "Task": "task",
    "compare": "results.comparison",
    "load_task": "loading",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes seconds, which the command line spends guarded."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tracin-replay")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
