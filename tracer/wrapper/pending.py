"""A step that was taken and is not written yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tracer.codec.layout import Row
from tracer.log.write.writer import LogWriter
from tracer.records import Step
from tracer.watch.measurement import fill_in


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
