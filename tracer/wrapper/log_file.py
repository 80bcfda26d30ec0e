"""The log of one run: how it is created, and how it is opened to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tracer.log.write.creation import LogOptions, create_log, environment
from tracer.log.write.resumption import Resumption, last_state, reopen
from tracer.log.write.writer import LogWriter
from tracer.records import RandomState
from tracer.watch.measurement import Measurement
from tracer.wrapper.snapshot_choice import SnapshotChoice

# with the run that goes on
_SHARED = (
    "optimizer",
    "reduction",
    "snapshot_every",
    "record",
    "data_seed",
    "cuda_devices",
    "ranks",
)


@dataclass(frozen=True)
class LogFile:
    """A run's log.

    Attributes:
        path: Where it is.
        attributes: Metadata of the run.
        options: How it is written.
        snapshots: Where it has parameters.
    """

    path: Path
    attributes: Mapping[str, Any]
    options: LogOptions
    snapshots: SnapshotChoice

    def creation(
        self, model: nn.Module, measurement: Measurement, random: RandomState
    ) -> Callable[[], LogWriter]:
        """Return what creates the log; all it needs is looked up here, in the training thread.

        Args:
            model: Has the buffers.
            measurement: Knows parameters and hyperparameters.
            random: Torch's generators, for their size.
        """
        return partial(
            create_log,
            self.path,
            {n: p.detach() for n, p in measurement.parameters.items()},
            {n: b.detach() for n, b in model.named_buffers()},
            hyperparameters=measurement.hyperparameters(),
            random_bytes=len(random.cpu) + sum(len(s) for s in random.cuda.values()),
            attributes={**self.attributes, **environment()},
            options=self.options,
        )

    def last_state(self, at: int | None) -> Resumption | None:
        """Return the log's last full state, None if it holds no step; see ``resumption``."""
        known = {name: self.attributes[name] for name in _SHARED if name in self.attributes}
        return last_state(self.path, known, at, ranks=self.attributes["ranks"])

    def reopening(self, step: int) -> Callable[[], LogWriter]:
        """Return what opens the log, cut to so many steps."""
        return partial(reopen, self.path, step, self.options.sync_every)
