"""The beginning of a traced run: what its log says of it, where it goes on, what it will cost."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.arguments import check_numbers, checked_compression, qualified, rule
from tracer.coding import momentum_of
from tracer.errors import TracingWarning
from tracer.forecast import Forecast
from tracer.log_file import LogOptions
from tracer.recording import Recorder
from tracer.step_logger import StepLogger


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
        momentum_of(optimizer.defaults),
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
    """Resume the run if asked to, and say what it is; return the epoch that it is in."""
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
    forecast = log.forecast(steps or 0)
    say(f"tracing to {forecast}")
    warn_unless_fits(forecast)
    return None if found is None else found.state["epoch"]


def warn_unless_fits(forecast: Forecast) -> None:
    """Warn if there is no room for a log."""
    if not forecast.fits:
        warnings.warn(
            f"the log will not fit: {forecast}. When the disk is full, tracing ends and training "
            "goes on.",
            TracingWarning,
            stacklevel=3,
        )


def say(line: str) -> None:
    """Print a line for whoever watches the training."""
    print(line, file=sys.stderr, flush=True)
