"""The beginning of a traced run: what its log says of it, and where it goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.codec.layout import fields, row_bytes
from tracer.distributed.data_parallel import check_spread
from tracer.distributed.ranks import Ranks
from tracer.errors import TracingError, shown
from tracer.joined import Joined, members
from tracer.log.parts.hyperparameters import encode_names
from tracer.log.write.creation import LogOptions
from tracer.records import together
from tracer.rules.table import momentum_of
from tracer.unwrapping import unwrapped
from tracer.watch.forwards import ForwardWatch
from tracer.watch.moment import Moment
from tracer.watch.skipped_steps import SkippedSteps
from tracer.wrapper.arguments import check_numbers, checked_compression, qualified, rule
from tracer.wrapper.epochs import Draws, Epochs
from tracer.wrapper.forecast_lines import ForecastLines, say
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.logger import Logger
from tracer.wrapper.micro_batches import Observations
from tracer.wrapper.rank_logger import RankLogger
from tracer.wrapper.snapshot_choice import chosen
from tracer.wrapper.step_logger import StepLogger
from tracer.wrapper.taken_again import require_class
from tracer.wrapper.with_ids import WithIds


@dataclass(frozen=True)
class Settings:
    """What ``TracingOptimizer`` was given beside optimizer, model and log; see there."""

    task: str | None
    reduction: str
    snapshot_every: Any
    record: str
    data: WithIds | None
    resume: bool | int
    steps: int | None
    compression: str | None
    sync_every: int
    state_every: int | None


@dataclass(frozen=True)
class Tracing:
    """The parts of a traced run.

    Attributes:
        skips: Knows which steps a GradScaler skipped.
        forwards: Watches the model.
        observations: Collects what the user says of the next step.
        log: Steps the optimizer and logs it.
        epochs: Knows the epoch.
        forecasts: Says what the log will take.
        moment: Knows which steps are taken together.
    """

    skips: SkippedSteps
    forwards: ForwardWatch
    observations: Observations
    log: Logger
    epochs: Epochs
    forecasts: ForecastLines
    moment: Moment


def begin(
    path: Path, optimizer: Optimizer, model: nn.Module, settings: Settings, ranks: Ranks
) -> Tracing:
    """Put the parts of a traced run together; resume the run if asked to, and say so.

    Args:
        path: The log.
        optimizer: Does the steps.
        model: The object whose forwards count.
        settings: Checked as far as they have nothing to do with the log.
        ranks: The run's processes; all come here.
    """
    check_spread(model, batches=settings.record == "batches")
    inner, skips = unwrapped(model), SkippedSteps()
    forwards, draws = ForwardWatch(model, inner, skips), Draws(settings.data)
    kinds = settings.reduction, settings.record, draws, ranks.size
    observations = Observations(forwards, *kinds)
    parts = optimizer.parts if isinstance(optimizer, Joined) else {}
    forwards.captures.keys = tuple(parts)
    file = _log_file(path, optimizer, inner, forwards.devices, settings, ranks.size)
    check_numbers(steps=settings.steps)
    ranks.meet(_alike(file, settings, len(forwards.devices)))
    watched = optimizer, inner, forwards, skips, ranks
    log: Logger = StepLogger(file, *watched) if ranks.rank == 0 else RankLogger(file, *watched)
    forecasts = ForecastLines(log, observations, settings.steps)
    try:
        if isinstance(log, StepLogger):
            _go_back(log, ranks, forwards.devices, resume=settings.resume)
            observations.resume(path, log.state.steps)
            forecasts.begin()
        epochs = Epochs(log.state, settings.data)
        epochs.go_to(log.state.epoch)
        forwards.before_load = log.settle_early
        forwards.attach()  # last: a constructor that fails leaves the model as it was
    except BaseException:
        log.give_up()
        raise
    moment = Moment(parts, forwards.captures)
    return Tracing(skips, forwards, observations, log, epochs, forecasts, moment)


def _alike(file: LogFile, settings: Settings, devices: int) -> dict[str, Any]:
    """Return what has to be the same on all ranks of a run."""
    known = ("optimizer", "reduction", "record", "data_seed", "snapshot_every")
    found = {name: file.attributes.get(name) for name in known}
    return {**found, "resume": settings.resume, "CUDA devices": devices}


def _log_file(
    path: Path,
    optimizer: Optimizer,
    model: nn.Module,
    devices: list[int],
    settings: Settings,
    ranks: int,
) -> LogFile:
    check_numbers(sync_every=settings.sync_every or None, state_every=settings.state_every)
    elements = sum(p.numel() for p in model.parameters())
    row = row_bytes(fields(dict(model.named_parameters())))
    asked = chosen(settings.snapshot_every, row, settings.steps)
    snapshots = asked
    for one in members(optimizer):
        snapshots = require_class(snapshots, one)
    if settings.state_every is not None and not snapshots.is_dense:
        raise TracingError(
            f"snapshot_every={shown(settings.snapshot_every)} puts full states where its snapshots "
            "are: leave state_every out, or pass snapshot_every=1."
        )
    options = LogOptions(
        checked_compression(settings.compression, elements),
        max(momentum_of(rule(type(one)), one.defaults) for one in members(optimizer)),
        settings.sync_every,
        settings.state_every if snapshots.is_dense else snapshots.every,
    )
    attributes: dict[str, Any] = {
        "task": settings.task or "",
        "directory": _directory() if settings.task else "",
        "reduction": settings.reduction,
        "snapshot_every": snapshots.every,
        "record": settings.record,
        "optimizer": together(qualified(type(one)) for one in members(optimizer)),
        "update_rule": together(rule(type(one)) for one in members(optimizer)),
        "model": type(model).__name__,
        "cuda_devices": " ".join(map(str, devices)),
        "ranks": ranks,
    }
    if isinstance(optimizer, Joined):
        attributes["optimizer_names"] = encode_names(map(str, optimizer.parts))
    if settings.data is not None:
        attributes["data_seed"] = settings.data.seed
    return LogFile(path, attributes, options, snapshots)


def _directory() -> str:
    """Return the working directory, in which a task's file is named; nothing where it is gone."""
    try:
        return os.fsencode(Path.cwd()).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _go_back(log: StepLogger, ranks: Ranks, devices: list[int], *, resume: bool | int) -> None:
    """Go to a full state of the log if the run is to resume, with all ranks, and say so."""
    found = log.resume(None if resume is True else resume) if resume else None
    log.channel.require_lock()
    ranks.begin(log.state.steps, None if found is None else found.state, devices)
    if found is not None:
        which = "its last full state" if resume is True else "the full state that was asked for"
        say(
            f"resuming {log.path} at step {found.step}, {which}; {found.dropped} later steps are "
            "taken again"
        )
    elif resume:
        say(f"there is no step in {log.path} to resume from; a new run begins")
