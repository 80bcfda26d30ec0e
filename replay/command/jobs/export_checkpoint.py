"""The model before a step as a checkpoint: read or computed, written."""

from __future__ import annotations

from pathlib import Path

from replay.command.jobs.convert import say
from replay.command.jobs.opening import opened
from replay.command.options import Settings
from replay.results.state_dict import check_checkpoint, save_state_dict


def export_checkpoint(
    *, log: Path, step: int, out: Path, overwrite: bool, settings: Settings, as_json: bool
) -> None:
    """Write the checkpoint."""
    run, how = opened(log, settings, out), {"overwrite": overwrite}
    check_checkpoint(out, **how, inputs=[log])
    save_state_dict(run.state_dict(step), out, **how, inputs=[log])
    say(out, as_json=as_json, step=step)
