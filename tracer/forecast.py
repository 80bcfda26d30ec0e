"""What a run's log will take on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tracer.layout import fields, row_bytes
from tracer.records import RandomState


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


def forecast(
    path: Path, steps: int, tensors: Iterable[Mapping[str, Tensor]], random: RandomState
) -> Forecast:
    """Return what a run takes.

    Args:
        path: Its log.
        steps: How many it has.
        tensors: Parameters and buffers.
        random: Torch's random state.
    """
    state = sum(map(len, (random.cpu, *random.cuda.values())))
    step = sum(row_bytes(fields(some)) for some in tensors) + state + 1024
    free = shutil.disk_usage(path.absolute().parent).free
    return Forecast(path, steps, step, step * (steps + 1), free)


def readable(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
