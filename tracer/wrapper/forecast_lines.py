"""Says what a run's log will take: at the start, and once the size of its batches is known."""

from __future__ import annotations

import contextlib
import sys

from tracer.errors import warn
from tracer.wrapper.forecast import Forecast
from tracer.wrapper.logger import Logger
from tracer.wrapper.micro_batches import Observations


class ForecastLines:
    """Forecasts for whoever watches the training.

    Args:
        log: Knows what a step takes without its batches.
        observations: Knows what its batches take.
        steps: How many the run has, None if nobody knows.
    """

    def __init__(self, log: Logger, observations: Observations, steps: int | None) -> None:
        self._log, self._observations, self._steps = log, observations, steps or 0
        self._waits = False

    def begin(self) -> None:
        """Say it at the start."""
        self._waits = self._observations.bytes_per_step is None
        self._say()

    def step_taken(self) -> None:
        """Say it again once a step has shown what its batches take."""
        if self._waits and self._observations.bytes_per_step is not None:
            self._waits = False
            with contextlib.suppress(OSError):  # a folder that is gone is said by whoever writes
                self._say()

    def _say(self) -> None:
        say(f"tracing to {self.forecast(self._steps)}")

    def forecast(self, steps: int) -> Forecast:
        """Return what a run of so many steps takes; warn if it will not fit."""
        forecast = self._log.forecast(steps).with_batches(self._observations.bytes_per_step)
        if not forecast.fits:
            warn(
                f"the log will not fit: {forecast}. When the disk is full, tracing ends and "
                "training goes on."
            )
        return forecast


def say(line: str) -> None:
    """Print a line for whoever watches the training."""
    print(line, file=sys.stderr, flush=True)
