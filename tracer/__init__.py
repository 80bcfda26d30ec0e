"""Trace a torch training run: every step's batch IDs, learning rate and parameters in one file."""

from importlib.metadata import version

from tracer.errors import TracinError
from tracer.log.read.run_log import RunLog, open_log
from tracer.records import Step
from tracer.wrapper.optimizer import TracingOptimizer
from tracer.wrapper.sgd import TracingSGD
from tracer.wrapper.with_ids import collate_with_ids, with_ids

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
