"""What a run's log will take on the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Forecast:
    """What a run's log will take.

    Attributes:
        path: The log.
        steps: Steps of the run.
        bytes_per_step: Bytes of one, before coding.
        bytes: Bytes of the log.
        free: Free bytes where it is written.
    """

    path: Path
    steps: int
    bytes_per_step: int
    bytes: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.bytes <= self.free

    def __str__(self) -> str:
        step, free = readable(self.bytes_per_step), readable(self.free)
        if not self.steps:
            room = self.free // self.bytes_per_step
            return f"{self.path}: {step} a step; {free} free, enough for {room:,} steps"
        return (
            f"{self.path}: {step} a step, {readable(self.bytes)} for {self.steps:,} steps; "
            f"{free} free"
        )


def readable(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a file is or will be on."""
    return shutil.disk_usage(path.absolute().parent).free
