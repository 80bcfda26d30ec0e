"""A step that was taken and is not written yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tracer.layout import Row
from tracer.measurement import fill_in
from tracer.records import Step
from tracer.writer import LogWriter


@dataclass(frozen=True)
class Pending:
    """A step whose parameters are not final yet."""

    step: Step
    norms: Callable[[], list[tuple[float | None, ...]]]
    buffers: Row

    def write(self, writer: LogWriter, parameters: Row, buffers: Row) -> None:
        """Append the step to the log."""
        fill_in(self.step, self.norms())
        writer.append(self.step, parameters, self.buffers, buffers)
