"""Trace a torch training run: every step's batch IDs, learning rate and parameters in one file."""

from typing import TYPE_CHECKING

from tracer.deferred import deferred

if TYPE_CHECKING:
    from tracer.errors import TracinError
    from tracer.log.read.run_log import RunLog, open_log
    from tracer.records import Step
    from tracer.wrapper.optimizer import TracingOptimizer
    from tracer.wrapper.sgd import TracingSGD
    from tracer.wrapper.with_ids import collate_with_ids, with_ids

    __version__: str

__all__ = [
    "RunLog",
    "Step",
    "TracinError",
    "TracingOptimizer",
    "TracingSGD",
    "__version__",
    "collate_with_ids",
    "open_log",
    "with_ids",
]

_HOMES = {
    "RunLog": "tracer.log.read.run_log",
    "Step": "tracer.records",
    "TracinError": "tracer.errors",
    "TracingOptimizer": "tracer.wrapper.optimizer",
    "TracingSGD": "tracer.wrapper.sgd",
    "collate_with_ids": "tracer.wrapper.with_ids",
    "open_log": "tracer.log.read.run_log",
    "with_ids": "tracer.wrapper.with_ids",
}
__getattr__ = deferred(__name__, _HOMES)


def __dir__() -> list[str]:
    """List what is not imported yet, too."""
    return sorted({*globals(), *__all__})
