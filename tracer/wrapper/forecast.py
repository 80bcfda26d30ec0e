"""What a run's log will take on the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tracer.codec.layout import fields, row_bytes
from tracer.watch.state_capture import RunState
from tracer.wrapper.snapshot_choice import SnapshotChoice

_MOMENTS = 2  # vectors that an optimizer may keep, before it has any


@dataclass(frozen=True)
class Forecast:
    """What a run's log will take.

    Attributes:
        path: The log.
        steps: Steps of the run.
        bytes_per_step: Bytes of one, before coding.
        bytes: Bytes of the log.
        free: Free bytes where it is written.
        snapshots: Where the log has parameters.
        batches: Those of ``bytes_per_step`` that are recorded batches; None if they come on top.
        written: Bytes that the file at the path has, of which the log can make use.
    """

    path: Path
    steps: int
    bytes_per_step: int
    bytes: int
    free: int
    snapshots: SnapshotChoice
    batches: int | None = 0
    written: int = 0

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.bytes <= self.free + self.written

    def with_batches(self, size: int | None) -> Forecast:
        """Return this with so many bytes of recorded batches a step, None if nobody knows yet."""
        return replace(
            self,
            batches=size,
            bytes_per_step=self.bytes_per_step + (size or 0),
            bytes=self.bytes + self.steps * (size or 0),
        )

    def __str__(self) -> str:
        step, free = f"{readable(self.bytes_per_step)} a step", f"{readable(self.free)} free"
        if self.written:
            free += f" besides the {readable(self.written)} of the file that is there"
        if self.batches:
            step += f" ({readable(self.batches)} of it recorded batches, before compression)"
        room = self.free // self.bytes_per_step
        whole = (
            f", {readable(self.bytes)} for {self.steps:,} steps; {free}"
            if self.steps
            else f"; {free}, enough for {room:,} steps"
        )
        more = "; recorded batches come on top" if self.batches is None else ""
        return f"{self.path}: {self.snapshots}; {step}{whole}{more}"


def forecast(
    path: Path, steps: int, model: nn.Module, run: RunState, snapshots: SnapshotChoice
) -> Forecast:
    """Return what a run takes.

    Args:
        path: Its log.
        steps: How many it has.
        model: What has the parameters and buffers.
        run: The run.
        snapshots: Where its log has parameters.
    """
    random = sum(map(len, (run.random.cpu, *run.random.cuda.values())))
    parameters, buffers = (
        row_bytes(fields(dict(some))) for some in (model.named_parameters(), model.named_buffers())
    )
    state = max(run.nbytes, parameters * (1 + _MOMENTS))
    every = snapshots.every or max(1, steps)
    step = buffers + random + 1024 + (parameters if snapshots.is_dense else state // every)
    free = shutil.disk_usage(path.absolute().parent).free
    written = path.stat().st_size if path.exists() else 0
    whole = step * (steps + 1) + (0 if snapshots.is_dense else state)
    return Forecast(path, steps, step, whole, free, snapshots, written=written)


def readable(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
