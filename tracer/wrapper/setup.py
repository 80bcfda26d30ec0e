"""The beginning of a traced run: what its log says of it, where it goes on, what it will cost."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.errors import TracingWarning
from tracer.log.write.creation import LogOptions
from tracer.rules.table import momentum_of
from tracer.watch.forwards import Recorder
from tracer.wrapper.arguments import check_numbers, checked_compression, qualified, rule
from tracer.wrapper.forecast import Forecast
from tracer.wrapper.micro_batches import Observations
from tracer.wrapper.step_logger import StepLogger


def step_logger(
    path: Path,
    optimizer: Optimizer,
    model: nn.Module,
    recorder: Recorder,
    *,
    compression: str | None,
    sync_every: int,
    state_every: int | None,
    **attributes: Any,
) -> StepLogger:
    """Return what logs an optimizer's steps; attributes go into the log."""
    check_numbers(sync_every=sync_every or None, state_every=state_every)
    elements = sum(p.numel() for p in model.parameters())
    options = LogOptions(
        checked_compression(compression, elements),
        momentum_of(rule(type(optimizer)), optimizer.defaults),
        sync_every,
        state_every,
    )
    known = {
        **attributes,
        "optimizer": qualified(type(optimizer)),
        "update_rule": rule(type(optimizer)),
        "model": type(model).__name__,
        "cuda_devices": " ".join(map(str, recorder.devices)),
    }
    return StepLogger(path, optimizer, model, recorder, known, options)


def begin(log: StepLogger, *, resume: bool, steps: int | None) -> int | None:
    """Resume the run if asked to, and say so; return the epoch that it is in."""
    check_numbers(steps=steps)
    found = log.resume() if resume else None
    log.feed.report()
    if found is not None:
        say(
            f"resuming {log.path} at step {found.step}, its last full state; {found.dropped} later "
            "steps are taken again"
        )
    elif resume:
        say(f"there is no step in {log.path} to resume from; a new run begins")
    return None if found is None else found.state["epoch"]


class Outlook:
    """Says what a run's log will take: at the start, and once the size of its batches is known.

    Args:
        log: Knows what a step takes without its batches.
        observations: Knows what its batches take.
        steps: How many the run has, None if nobody knows.
    """

    def __init__(self, log: StepLogger, observations: Observations, steps: int | None) -> None:
        self._log, self._observations, self._steps = log, observations, steps or 0
        self._waits = observations.bytes_per_step is None
        self._say()

    def step_taken(self) -> None:
        """Say it again once a step has shown what its batches take."""
        if self._waits and self._observations.bytes_per_step is not None:
            self._waits = False
            with contextlib.suppress(OSError):  # a folder that is gone is said by whoever writes
                self._say()

    def _say(self) -> None:
        say(f"tracing to {self.forecast(self._steps, depth=5)}")

    def forecast(self, steps: int, depth: int = 3) -> Forecast:
        """Return what a run of so many steps takes; warn if it will not fit."""
        forecast = self._log.forecast(steps).with_batches(self._observations.bytes_per_step)
        if not forecast.fits:
            warnings.warn(
                f"the log will not fit: {forecast}. When the disk is full, tracing ends and "
                "training goes on.",
                TracingWarning,
                stacklevel=depth,
            )
        return forecast


def say(line: str) -> None:
    """Print a line for whoever watches the training."""
    print(line, file=sys.stderr, flush=True)
