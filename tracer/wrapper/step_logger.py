"""Takes a wrapped optimizer's steps and turns each into a record.

A step is written when the parameters that it led to are final: when the next step begins, at
``flush`` or at ``close``. So whatever touches them between two steps is in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from tracer.codec.layout import fields, row_bytes
from tracer.distributed.ranks import Ranks
from tracer.errors import warn
from tracer.log.write.resumption import Resumption
from tracer.records import MicroBatch
from tracer.thread.log_channel import LogChannel
from tracer.watch.forwards import ForwardWatch
from tracer.watch.measurement import Measurement
from tracer.watch.skipped_steps import SkippedSteps
from tracer.watch.state_capture import RunState
from tracer.wrapper.last_step import LastStep
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.logger import Logger
from tracer.wrapper.pending_step import MeasuredStep, PendingStep
from tracer.wrapper.snapshot_choice import EPOCH
from tracer.wrapper.step_look import StepLook
from tracer.wrapper.stepping import Call
from tracer.wrapper.taking import Taking, TakingPart

Seen = TypeVar("Seen")
_NO_EPOCH = (
    'snapshot_every="epoch", but optimizer.epoch is not set at the first step: full states stand '
    "where it changes, and nowhere else.\n"
    "1. Set optimizer.epoch = epoch where an epoch begins;\n"
    "2. or pass a number of steps, snapshot_every=100 for example."
)


class StepLogger(Logger):
    """Steps the optimizers of a run and logs it.

    Args:
        file: The log.
        optimizer: Does the steps.
        model: The module that owns the parameters.
        forwards: Watches the model.
        skips: Knows which steps a GradScaler skipped.
        ranks: The run's processes, of which this one writes the log.

    Attributes:
        path: The log.
        state: What the run is after its last step.
        channel: The way to the log.
    """

    def __init__(
        self,
        file: LogFile,
        optimizer: Optimizer,
        model: nn.Module,
        forwards: ForwardWatch,
        skips: SkippedSteps,
        ranks: Ranks,
    ) -> None:
        super().__init__(file, model)
        self._forwards, self._skips, self._ranks = forwards, skips, ranks
        self._measurement = Measurement(optimizer, model)
        every, row = file.options.state_every, row_bytes(fields(self._measurement.parameters))
        row = row if file.options.compression == "none" else row // 3  # about
        known, sparse = (model, optimizer, forwards.devices), not file.snapshots.is_dense
        self.state = RunState(
            *known, every=every, row_bytes=row, sparse=sparse, others=ranks.random
        )
        self._said, self.channel = False, LogChannel(file.path)
        self._last = LastStep(file, self.channel, model, forwards, self._measurement, self.state)
        self._look = StepLook(self._measurement, forwards, self._last, self.state, ranks)

    @property
    def has_no_step(self) -> bool:
        """Whether the log is open and its run has taken no step, nor moved without one."""
        untouched = self.state.steps == 0 and not self._last.between and not self.channel.stopped
        here = not self._closed and self.is_here
        return untouched and here and self._last.moved(ending=True) is None

    def resume(self, at: int | None) -> Resumption | None:
        """Go back to a full state of the log and go on from there; None if nothing is logged.

        Args:
            at: Its step; None is that of the last one.

        Raises:
            TracingError: The log is of another run, not writable, open in a reader, without state.
        """
        if not self.path.exists():
            return None
        self.channel.require_writable()
        found = self._file.last_state(at)
        if found is None:
            return None
        self.state.restore(found.step, found.state)
        self._last.versions.note()
        if found.step:
            self.channel.resume(self._file.reopening(found.step), self._measurement.parameters)
        return found

    def step(self, call: Call, announce: Callable[[], object]) -> tuple[Any, MeasuredStep | None]:
        """Take one step.

        Args:
            call: Of an optimizer's ``step``.
            announce: Called when a closure has run for the first time.

        Returns:
            What the optimizer returned, and what is to be passed to ``keep``; None if the step
            was skipped or is not logged.
        """
        self.channel.report()
        if self._last.between:  # and the user went on
            self.channel.stop(f"a step of {self.path} was interrupted before it was put down")
        if self.channel.stopped:
            return self._step_untraced(call), None
        self._say(self._last.unknown())
        state = self._attempt(self._look.state_before)
        if self.channel.stopped:
            return self._step_untraced(call), None
        looking = self._look, self._last, self._attempt
        result, measured = Taking(call, *looking, state, announce).take()
        if measured is None:
            self.channel.stop("the optimizer's step did not call the hooks that were set")
        if self.channel.stopped:
            self._count_untraced(call)
            return result, None
        if self._skips.skipped_inside(call.optimizer):
            self._last.keep(None)
            return result, None
        return result, measured

    def step_along(self, call: Call, clip_factor: float) -> Any:
        """Take one more optimizer's part of the last step; see ``Logger``."""
        self.channel.report()
        pending = self._last.pending
        if pending is None and not self.channel.stopped:
            self.channel.stop(f"the optimizers of one step of {self.path} were parted by flush()")
        if pending is None or self.channel.stopped:
            return call.make()
        self._last.busy = True
        result, seen = TakingPart(call, self._look, self._attempt).take()
        if seen is not None and not self._skips.skipped_inside(call.optimizer):
            pending = pending.with_part(seen, clip_factor)
        self._last.keep(None if self.channel.stopped else pending)
        return result

    def keep(
        self,
        measured: MeasuredStep,
        micro_batches: list[MicroBatch],
        *,
        epoch: int | None,
        clip_factor: float,
    ) -> None:
        """Keep a step that was taken until its parameters are final."""
        if epoch is None and self._file.snapshots.every == EPOCH and self.state.steps == 0:
            warn(_NO_EPOCH)
        known = self._measurement.frozen(), self._ranks.whole
        self.state.step_taken(epoch)
        self.channel.step_taken(self.state.steps)
        self._last.keep(PendingStep(measured, epoch, tuple(micro_batches), clip_factor, *known))

    def flush(self, *, state: bool = False) -> None:
        """Return when every step so far is on file, the last one as parameters are now."""
        self.state.want(state=state)
        said = self._last.moved(ending=False)
        if self.channel.started and not self.channel.stopped and not self._closed:
            if not self._last.between and self.is_here:
                self._attempt(self._last.settle_now)
            self.channel.flush()
        self._say(said)

    def is_on_file(self) -> bool:
        """Have every step but the last one on file; return whether it is."""
        if not self.channel.stopped:
            self.channel.flush()
        return not self.channel.stopped

    def settle_early(self) -> None:
        """Write the last step's result: something is about to change parameters."""
        if not self.channel.stopped and not self._closed and self.is_here:
            self._attempt(self._last.settle_early)

    @torch.no_grad()
    def close(self) -> None:
        """Write what is left, close the file, leave the model alone; a forked copy only that."""
        first, self._closed = not self._closed, True
        self._forwards.detach()
        if not self.is_here or self.channel.stopped:
            return
        said = self._last.moved(ending=True) if first else None
        try:
            # an exception in a step leaves parameters half moved
            if first and not self._last.between:
                self._attempt(self._last.settle_last)
        finally:
            self.channel.close()
        self._say(said)

    def observed(self) -> None:
        """Say so if the model moved since another micro-batch of the step was announced."""
        self._say(self._last.observed())

    def _say(self, text: str | None) -> None:
        """Say once in a run that parameters moved, and not by a step of the wrapper."""
        if text is not None and not self._said:
            self._said = True
            warn(text)

    def give_up(self) -> None:
        """Write no step."""
        self._closed = True
        self.channel.close()

    def _attempt(self, look: Callable[[], Seen]) -> Seen | None:
        with torch.no_grad():
            return self.channel.attempt(look, f"step {self.state.steps}")

    def _step_untraced(self, call: Call) -> Any:
        result = call.make()
        self._count_untraced(call)
        return result

    def _count_untraced(self, call: Call) -> None:
        self._last.keep(None)
        self.state.steps += not self._skips.skipped_inside(call.optimizer)
