"""Saving what a command computed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from replay.results.checkpoint_sweep import CheckpointSweep
from replay.results.influence import Influence
from replay.results.self_influence import SelfInfluence
from tracer.errors import InputError


def save(
    found: Influence | SelfInfluence | CheckpointSweep, target: Path, *, overwrite: bool
) -> None:
    """Save a result; where that fails, elsewhere, since the process ends with its error.

    Raises:
        InputError: It could not be written to its place; says where it is.
    """
    try:
        found.save(target, overwrite=overwrite)
    except InputError as error:
        try:
            spare = Path(tempfile.mkdtemp(prefix="tracin-replay-")) / target.name
            found.save(spare)
        except (InputError, OSError):
            raise error from None
        raise InputError(f"{error}\nIt was saved as {spare} instead.") from error
