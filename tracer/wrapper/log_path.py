"""Where a log goes: looked at when the wrapper is made, so that no run ends up without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tracer.errors import LogError, OutputExistsError, TracingError
from tracer.log.opening import is_log, is_open_here


def checked_path(log: Any, *, overwrite: bool, resume: bool, rank: int = 0) -> Path:
    """Return the absolute path of a log that can be written there, if this rank is to write it.

    Raises:
        OutputExistsError: There is a log, and neither ``overwrite`` nor ``resume`` is on.
        TracingError: There is something else, or there cannot be one.
    """
    if overwrite and resume:
        raise TracingError("overwrite=True begins anew, resume=True goes on; pass one of them.")
    try:
        path = Path(log).absolute()
        if rank:
            return path
        real = Path(os.path.realpath(path))
        if os.path.lexists(real):
            _check_existing(path, real, overwrite=overwrite, resume=resume)
    except (TypeError, ValueError) as error:
        raise TracingError(
            f"log must be the path of a file, found {type(log).__name__}: {error}."
        ) from error
    except OSError as error:
        raise TracingError(
            f"the log {log} cannot be written: {error.strerror}; choose another path."
        ) from error
    if not real.parent.is_dir():
        raise TracingError(
            f"there is no directory {real.parent} for the log.\n1. Create it.\n"
            "2. Choose another path."
        )
    return path


def _check_existing(path: Path, real: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise an error unless what is there is a log that may be replaced or gone on with."""
    if real.is_dir():
        raise TracingError(
            f"log must be the path of a file, and {path} is a folder; give a file in it: "
            f"{path / 'run.h5'}."
        )
    if not real.is_file():
        raise TracingError(f"log must be a regular file, and {path} is none; choose another path.")
    if resume:
        return
    if not _is_replaceable(real):
        raise OutputExistsError(
            f"{path} exists and is no run log; a log replaces logs only.\n"
            "1. Choose another path.\n2. Remove that file yourself."
        )
    if not overwrite:
        raise OutputExistsError(
            f"the log {path} exists; choose another path, pass overwrite=True to replace it, or "
            "resume=True to go on with it."
        )
    if is_open_here(real):
        raise TracingError(
            f"the log {path} is open for reading in this process, so overwrite=True may not "
            "replace it.\n"
            "1. Close it first: log.close(), of a Replay replay.log.close().\n"
            "2. Choose another path.\n"
            '3. In a file that a task is loaded from, train under if __name__ == "__main__".'
        )


def _is_replaceable(real: Path) -> bool:
    try:
        return real.stat().st_size == 0 or is_log(real)
    except LogError:
        return True  # damaged: overwrite=True is a way out of that
