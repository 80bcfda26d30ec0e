"""Where a result goes: a place looked at before the work, and moved to when the result is whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from replay.results.variables import FORMATS, SELF_INFLUENCE, Format
from tracer.errors import InputError, OutputExistsError
from tracer.hdf5.opening import open_hdf5
from tracer.log.read.run_log import is_log

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES)


def check_free(
    target: Path, kind: Format | None, *, overwrite: bool, inputs: Iterable[str | Path] = ()
) -> None:
    """Raise unless a result can be written.

    Args:
        target: Where it is to stand.
        kind: Which result it is: it replaces its own kind only; None is no result, and replaces
            what is no log.
        overwrite: Whether it may replace a file.
        inputs: Files that it may never replace, by whatever name or link.

    Raises:
        OutputExistsError: It would replace a result unasked.
        InputError: It would replace anything else, or cannot be written there.
    """
    try:
        check_inputs(target, inputs)
        _check_replaceable(target, kind)
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
        with suppress(FileNotFoundError):
            _partial(target).lstat()  # is the name too long?
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # os.access does not see read-only file systems
    except OSError as error:
        raise InputError(
            f"the result {target} cannot be written: {error.strerror}; choose another path."
        ) from error


def check_inputs(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raise InputError if a result would replace a file that it is made from."""
    for path in inputs:
        if target.exists() and Path(path).exists() and target.samefile(path):
            raise InputError(
                f"the result would replace {target}, which is the input {path}; choose another "
                "path."
            )


def inputs_of(attributes: Mapping[str, object]) -> list[str]:
    """Return the log and the task's file that the attributes of a result name."""
    log, task = (str(attributes.get(name, "")) for name in ("log", "task"))
    return [path for path in (log, task.rpartition(":")[0]) if path]


def stated_format(file: h5py.File) -> str | None:
    """Return which format a file says it has; the first self-influence files said nothing."""
    found = file.attrs.get("format")
    if found is None and all(name in file for name in ("train", "self", "own_drop")):
        return SELF_INFLUENCE.name
    found = found.decode(errors="replace") if isinstance(found, bytes) else found
    return found if isinstance(found, str) else None


def _check_replaceable(target: Path, kind: Format | None) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise InputError(
            f"the result can only replace a regular file, and {target} is a "
            f"{'folder' if target.is_dir() else 'device or pipe'}; choose another path."
        )
    if is_log(target):
        raise InputError(f"the result would replace {target}, a run log; choose another path.")
    if kind is None:
        return
    found = content(target)
    if found not in ("nothing", kind.content):
        raise InputError(
            f"the result would replace {target}, which holds {found}; a result replaces its own "
            f"kind only, here {kind.content}. Choose another path, or remove that file yourself."
        )


def content(place: Path) -> str:
    """Return what a regular file holds, in words."""
    if place.stat().st_size == 0:
        return "nothing"
    try:
        with open_hdf5(place, "r") as file:
            found = stated_format(file)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return "no result that can be read"
    return next((kind.content for kind in FORMATS if kind.name == found), "no result")


@contextmanager
def moved_when_whole(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a path beside ``target`` that no file has; move the file there at the end.

    Raises:
        OutputExistsError: Another program has written the result meanwhile.
        InputError: The disk is full, or the place was taken away meanwhile.
    """
    partial = _partial(target)
    try:
        yield partial
        _move(partial, target, overwrite=overwrite)
    except FileExistsError as error:
        raise OutputExistsError(
            f"the result {target} exists: another program wrote it meanwhile; save this one under "
            "another path."
        ) from error
    except OSError as error:
        raise InputError(
            f"the result {target} could not be written: {error.strerror or error}"
            f"{_free(target)}. Nothing was replaced.\n"
            "1. Choose a path where there is room: result.save(path), since it is in memory.\n"
            "2. Make room there, and save it again."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _move(partial: Path, target: Path, *, overwrite: bool) -> None:
    """Give a whole file its name, in one moment."""
    if overwrite:
        partial.replace(target)
        return
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "it exists", str(target)) from error
        partial.rename(target)


def _free(target: Path) -> str:
    try:
        return f" ({shutil.disk_usage(target.parent).free:,} bytes are free there)"
    except OSError:
        return ""


def _partial(target: Path) -> Path:
    """Return a name that no file has: what stands beside a result is never opened."""
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
