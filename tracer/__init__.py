"""Trace a torch training run: every step's batch IDs, learning rate and parameters in one file."""

from importlib.metadata import version

from tracer.batches import collate_with_ids, with_ids
from tracer.errors import TracinError
from tracer.optimizer import TracingOptimizer
from tracer.reader import RunLog, open_log
from tracer.records import Step
from tracer.sgd import TracingSGD

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

__version__ = version("tracin-replay")
