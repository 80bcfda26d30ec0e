"""The folder of finished parts, beside the result: looked into before a job begins, and removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from replay.results.part_file import records

ENDING, STATE = ".parts", ".state"  # of files with parts, and with a state
PART, NOTE = "part", "note"  # in headers


def parts_of(target: Path) -> Path:
    """Return where finished parts of a result are kept."""
    return target.with_name(f"{target.name}{ENDING}")


def begun_with(path: Path, name: str) -> Any:
    """Return one entry of the question that finished parts on file answer; None without any."""
    for file in sorted(path.glob(f"*{ENDING}")):
        for one in records(file):
            return one.header.get("question", {}).get(name)
    return None


def remove_parts(target: Path) -> None:
    """Remove the finished parts of a result that is on file."""
    path = parts_of(target)
    if path.is_dir():
        for ending in (ENDING, STATE):
            for file in path.glob(f"*{ending}"):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            path.rmdir()


def remove_unbegun(target: Path) -> None:
    """Remove what a job left that finished no part: another question may be asked there."""
    if all(map(_is_unbegun, parts_of(target).glob(f"*{ENDING}"))):
        remove_parts(target)


def _is_unbegun(file: Path) -> bool:
    """Return whether a file has a question, and no part that was work."""
    some = (one.header for one in records(file))
    return "question" in next(some, {}) and all(NOTE in header for header in some)
