"""Where a result goes: a place looked at before the work, and moved to when the result is whole."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tracer.errors import InputError, LogError, OutputExistsError
from tracer.log.read.run_log import open_log


def check_free(target: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raise unless a result can be written.

    Args:
        target: Where it is to stand.
        overwrite: Whether it may replace a file.
        inputs: Files that it may never replace, by whatever name or link; nor any run log.

    Raises:
        OutputExistsError: It would replace a file unasked.
        InputError: It would replace an input or what is no file, or cannot be written there.
    """
    inputs = list(inputs)
    try:
        _check_replaceable(target, inputs)
        _check_replaceable(_partial(target), inputs)
        if target.exists() and not overwrite:
            raise OutputExistsError(
                f"the result {target} exists; choose another path or overwrite it "
                "(overwrite=True, --overwrite)."
            )
        if not target.parent.is_dir():
            raise InputError(
                f"cannot write {target}: there is no folder {target.parent}. Create it or choose "
                "another path."
            )
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # os.access does not see read-only file systems
    except OSError as error:
        raise InputError(
            f"the result {target} cannot be written: {error.strerror}; choose another path."
        ) from error


def _check_replaceable(place: Path, inputs: Iterable[str | Path]) -> None:
    if not place.exists():
        return
    for path in inputs:
        if Path(path).exists() and place.samefile(path):
            raise InputError(
                f"the result would replace {place}, which is the input {path}; choose another path."
            )
    if not place.is_file():
        raise InputError(
            f"the result can only replace a regular file, and {place} is a "
            f"{'folder' if place.is_dir() else 'device or pipe'}; choose another path."
        )
    if is_log(place):
        raise InputError(f"the result would replace {place}, a run log; choose another path.")


def is_log(path: Path) -> bool:
    """Return whether a file is a run log."""
    try:
        with open_log(path):
            return True
    except LogError:
        return False


def inputs_of(attributes: Mapping[str, object]) -> list[str]:
    """Return the log and the task's file that the attributes of a result name."""
    log, task = (str(attributes.get(name, "")) for name in ("log", "task"))
    return [path for path in (log, task.rpartition(":")[0]) if path]


@contextmanager
def moved_when_whole(target: Path) -> Iterator[Path]:
    """Give a new path beside ``target`` to write to; move the file there at the end.

    Raises:
        InputError: The disk is full, the place was taken away meanwhile, or another program
            writes there.
    """
    partial, foreign = _partial(target), False
    try:
        _remove_left_behind(partial)
        yield partial
        partial.replace(target)
    except (BlockingIOError, FileExistsError) as error:
        foreign = True
        raise InputError(
            f"another program is writing the result {target}; choose another path for this one."
        ) from error
    except OSError as error:
        raise InputError(
            f"the result {target} could not be written: {error}; nothing was."
        ) from error
    finally:
        if not foreign:
            partial.unlink(missing_ok=True)


def _remove_left_behind(partial: Path) -> None:
    """Remove what a crash left; raise BlockingIOError if it is locked, as HDF5 does that writes."""
    if partial.is_file() and not partial.is_symlink():
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    partial.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")
