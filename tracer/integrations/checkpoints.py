"""A log beside a trainer's own checkpoints: both begin, or both go on from one step of one run."""

from __future__ import annotations

from pathlib import Path

import torch

from tracer.errors import OutputExistsError, TracingError
from tracer.log.read.run_log import open_log


def check_new(log: Path, resume: str, *, overwrite: bool) -> None:
    """Raise OutputExistsError if a run that begins would need a log's place.

    Args:
        log: Path of the log.
        resume: The call that goes on from a checkpoint.
        overwrite: Whether it may be replaced.
    """
    if log.exists() and not overwrite:
        raise OutputExistsError(
            f"the log {log} exists.\n"
            "1. To replace it: trace(..., overwrite=True).\n"
            f"2. To go on with its run: {resume}.\n"
            "3. Or choose another path."
        )


def check_checkpoint(log: Path, step: int, model: torch.nn.Module, without: str) -> None:
    """Raise TracingError if a log does not go on from a trainer's checkpoint.

    Args:
        log: Path of the log.
        step: Of the checkpoint.
        model: Which has its parameters.
        without: What a run from the start leaves out.
    """
    other = (
        "\n1. Resume from the checkpoint whose run wrote the log.\n"
        f"2. Train from the start, without {without}, with overwrite=True."
    )
    if not log.exists():
        raise TracingError(f"the checkpoint is at step {step} and there is no log {log}.{other}")
    with open_log(log) as run:
        if step not in run.states():
            there = ", ".join(map(str, run.states())) or "none"
            raise TracingError(
                f"the checkpoint is at step {step}, and {log} has no full state there; it has "
                f"those before the steps {there}.{other}"
            )
        kept = run.state(step)["parameters"]
    for name, parameter in model.named_parameters():
        if not torch.equal(kept[name], parameter.detach().cpu()):
            raise TracingError(
                f"the checkpoint and {log} are not of one run: at step {step} they differ in "
                f"{name!r}.{other}"
            )
