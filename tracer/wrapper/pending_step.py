"""A step that was taken and is not written yet; its record is made when it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracer.codec.layout import Row
from tracer.errors import TracingError
from tracer.log.write.writer import LogWriter
from tracer.records import MicroBatch, Step
from tracer.watch.group_look import Seen


@dataclass(frozen=True)
class MeasuredStep:
    """What a step was about to do, looked at before it.

    Attributes:
        index: ``t``.
        seen: Of each optimizer that stepped, groups and gradients.
        buffers: The model's before it.
    """

    index: int
    seen: tuple[Seen, ...]
    buffers: Row


@dataclass(frozen=True)
class PendingStep:
    """A step whose parameters are not final yet.

    Attributes:
        measured: What it was about to do.
        epoch: What ``optimizer.epoch`` was, or None.
        micro_batches: One for each forward pass of this process whose gradient it applied.
        clip_factor: What ``optimizer.clip_grad_norm_`` multiplied the gradient by.
        frozen: Parameters of the model that did not require a gradient.
        whole: Adds to a step's micro-batches those of other processes; may wait for them.
    """

    measured: MeasuredStep
    epoch: int | None
    micro_batches: tuple[MicroBatch, ...]
    clip_factor: float
    frozen: frozenset[str]
    whole: Callable[[int, Sequence[MicroBatch]], tuple[MicroBatch, ...]]

    def with_part(self, seen: Seen, clip_factor: float) -> PendingStep:
        """Return the step of one more optimizer, on gradients of the same moment.

        Args:
            seen: Of that one.
            clip_factor: What the gradients of all were multiplied with; norms tell the rest.
        """
        parts = sorted((*self.measured.seen, seen), key=lambda one: one.groups[0].optimizer)
        measured = replace(self.measured, seen=tuple(parts))
        return replace(self, measured=measured, clip_factor=clip_factor)

    def record(self) -> Step:
        """Return the step's record; waits for the device, so not in the training thread.

        Raises:
            TracingError: Another process does not say its part of the step.
        """
        seen = self.measured.seen
        groups = tuple([g for one in seen for g in one.gradients.of(one.groups)])
        return Step(
            index=self.measured.index,
            epoch=self.epoch,
            micro_batches=self.whole(self.measured.index, self.micro_batches),
            groups=groups,
            gradient_norm=math.hypot(*(group.gradient_norm for group in groups)),
            clip_factor=self.clip_factor,
            without_gradient=frozenset().union(*(one.gradients.without for one in seen)),
            frozen=self.frozen,
        )

    def write(self, writer: LogWriter, parameters: Row, buffers: Row) -> None:
        """Append the step to the log, with the parameters and buffers that it led to."""
        try:
            step = self.record()
        except TracingError:
            writer.commit()  # what came before is whole
            raise
        writer.append(step, parameters, self.measured.buffers, buffers)
