"""What is said of a log that its writer has not closed."""

from __future__ import annotations

import warnings
from pathlib import Path

from tracer.errors import LogWarning
from tracer.log.locking import writer_of
from tracer.log.opening import OpenFile

_LEVEL = 4  # the line that opened the log


def say_unclosed(path: Path, steps: int, torn: int, opened: OpenFile) -> None:
    """Warn of a log that has fewer steps than its run, or that may have.

    Args:
        path: The log.
        steps: How many whole ones it has.
        torn: How many at its end are not whole.
        opened: Its open file.
    """
    text = _live(path, steps) if opened.live else _left(path, steps, torn, opened.repair)
    if text:
        warnings.warn(text, LogWarning, stacklevel=_LEVEL)


def _left(path: Path, steps: int, torn: int, repair: str) -> str:
    done = [repair] if repair else []
    done += [f"{torn} torn steps at its end are left out"] if torn else []
    said = f"{path} was not closed by its writer: {', '.join(done)}. It holds {steps} whole steps."
    return said if done else ""


def _live(path: Path, steps: int) -> str:
    who, taken = writer_of(path)
    if taken is not None and taken <= steps:
        return ""
    of = "" if taken is None else f" of the {taken} that were taken"
    then = (
        "refresh() finds those that are written later."
        if taken is None
        else "Call flush() or close() on its optimizer, then open the log again."
    )
    return (
        f"{path} is being written by {who}: it has {steps} steps so far{of}. The last one taken is "
        f"written when the next begins, at flush and at close. {then}"
    )
