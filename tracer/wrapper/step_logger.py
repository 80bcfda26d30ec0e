"""Takes a wrapped optimizer's steps and turns each into a record.

A step is written when the parameters that it led to are final: when the next step begins, at
``flush`` or at ``close``. So whatever touches them between two steps is in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracer.codec.layout import Row, fields, pack, row_bytes
from tracer.errors import TracingError
from tracer.log.write.resumption import Resumption
from tracer.log.write.writer import LogWriter
from tracer.records import MicroBatch
from tracer.thread.log_channel import LogChannel
from tracer.watch.forwards import ForwardWatch
from tracer.watch.measurement import Measurement, step_measured
from tracer.watch.skipped_steps import SkippedSteps
from tracer.watch.state_capture import RunState
from tracer.watch.unseen import unseen
from tracer.wrapper.forecast import Forecast, forecast
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.pending_step import MeasuredStep, PendingStep


class StepLogger:
    """Steps one optimizer and logs it.

    Args:
        file: The log.
        optimizer: Does the steps.
        model: The module that owns the parameters.
        forwards: Watches the model.
        skips: Knows which steps a GradScaler skipped.

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
    ) -> None:
        self.path, self.model, self._file = file.path, model, file
        self._optimizer, self._forwards, self._skips = optimizer, forwards, skips
        self._measurement = Measurement(optimizer, model)
        every, row = file.options.state_every, row_bytes(fields(self._measurement.parameters))
        row = row if file.options.compression == "none" else row // 3  # about
        self.state = RunState(model, optimizer, forwards.devices, every=every, row_bytes=row)
        self._pending: PendingStep | None = None
        # between: parameters have moved, what is kept here has not yet
        self._closed = self._between = False
        self._owner, self.channel = os.getpid(), LogChannel(file.path)

    def require_open(self) -> None:
        """Raise TracingError after ``close``, and in a forked process."""
        if self._closed:
            raise TracingError(
                f"the log {self.path} is closed; keep training steps inside the with block."
            )
        if os.getpid() != self._owner:
            raise TracingError(
                f"the log {self.path} belongs to process {self._owner}, which forked this one; "
                "only that one can step the traced optimizer."
            )

    def resume(self) -> Resumption | None:
        """Go back to the log's last full state and go on from there; None if nothing is logged.

        Raises:
            TracingError: The log is of another run, not writable, open in a reader, without state.
        """
        if not self.path.exists():
            return None
        self.channel.require_writable()
        found = self._file.last_state()
        if found is None:
            return None
        self.state.restore(found.step, found.state)
        if found.step:
            self.channel.resume(self._file.reopening(found.step), self._measurement.parameters)
        return found

    def step(self, closure: Callable[[], Any] | None) -> tuple[Any, MeasuredStep | None]:
        """Take one step.

        Returns:
            What the optimizer returned, and what is to be passed to ``keep``; None if the step
            was skipped or is not logged.
        """
        self.channel.report()
        if self._between:  # and the user went on
            self.channel.stop(f"a step of {self.path} was interrupted before it was put down")
        if self.channel.stopped:
            return self._step_untraced(closure), None
        look, where = self.channel.attempt, f"step {self.state.steps}"
        state = look(self._state_before, where)
        if self.channel.stopped:
            return self._step_untraced(closure), None
        measure = partial(look, partial(self._measure, state), where)
        result, measured = step_measured(self._optimizer, closure, measure)
        if self.channel.stopped:
            self._count_untraced()
        if self._skips.skipped_inside():
            self._between = False
            return result, None
        return result, measured

    def keep(
        self,
        measured: MeasuredStep,
        micro_batches: list[MicroBatch],
        *,
        epoch: int | None,
        clip_factor: float,
    ) -> None:
        """Keep a step that was taken until its parameters are final."""
        frozen, batches = self._measurement.frozen(), tuple(micro_batches)
        self.state.step_taken(epoch)
        self._pending = PendingStep(measured, epoch, batches, clip_factor, frozen)
        self._between = False

    @torch.no_grad()
    def flush(self) -> None:
        """Return when every step so far is on file, the last one as parameters are now."""
        if self.channel.started and not self.channel.stopped and not self._closed:
            if not self._between and os.getpid() == self._owner:
                self.channel.attempt(self._settle_now, "the last step")
            self.channel.flush()

    @torch.no_grad()
    def close(self) -> None:
        """Write what is left, close the file, leave the model alone; a forked copy only that."""
        first, self._closed = not self._closed, True
        self._forwards.detach()
        if os.getpid() != self._owner or self.channel.stopped:
            return
        try:
            if first and not self._between:  # an exception in a step leaves parameters half moved
                self.channel.attempt(self._settle_last, "the last step")
        finally:
            self.channel.close()

    def give_up(self) -> None:
        """Write no step."""
        self._closed = True
        self.channel.close()

    def forecast(self, steps: int) -> Forecast:
        """Return what a run of so many steps takes."""
        return forecast(self.path, steps, self.model, self.state.random)

    def _step_untraced(self, closure: Callable[[], Any] | None) -> Any:
        result = self._optimizer.step(closure)
        self._count_untraced()
        return result

    def _count_untraced(self) -> None:
        self._pending, self._between = None, False
        self.state.steps += not self._skips.skipped_inside()

    def _state_before(self) -> bytes | None:
        """Return the full state if one is due: before the optimizer's hooks, called on resuming."""
        self._measurement.require_same()
        return self._full_state() if self.state.is_due else None

    def _measure(self, state: bytes | None) -> MeasuredStep:
        """Look at the step that is about to be taken: the last one has led to where it begins."""
        with unseen():
            buffers = pack(self._forwards.buffers)
            self._settle(buffers, state)
            groups, gradients = self._measurement.groups(), self._measurement.gradients()
        self._between = True
        return MeasuredStep(self.state.steps, groups, gradients, buffers)

    def _settle_now(self) -> None:
        """Write the pending step as parameters and buffers are now."""
        self._settle(pack(self._forwards.current_buffers()))
        if self.state.is_due:  # of use until the next step brings the final one
            self._submit_state(self._full_state(), passing=True)

    def _settle(self, buffers: Row, state: bytes | None = None) -> None:
        """Write the pending step, which led to where we are; begin the log if there is none."""
        pending, begins = self._pending, not self.channel.started
        if begins:
            self._between = True
            creation = self._file.creation(self.model, self._measurement, self.state.random)
            self.channel.start(creation, self._measurement.parameters)
        slot = self.channel.take()  # nothing is lost if Ctrl-C ends the waiting
        self._between = True
        if begins:
            self.channel.put(slot, partial(LogWriter.begin, threads=torch.get_num_threads()))
        elif pending is None:
            self.channel.put(slot, lambda writer, row: writer.amend(row, buffers))
        else:
            self.channel.put(slot, lambda writer, row: pending.write(writer, row, buffers))
            self._pending = None
        self._submit_state(state, passing=False)
        self._between = False

    def _settle_last(self) -> None:
        """Write the pending step and the final state."""
        buffers = pack(self._forwards.current_buffers())
        try:
            self._settle(buffers)
        except KeyboardInterrupt:  # it may have ended the waiting for the writer only
            if not self._between:
                self._settle(buffers)
            raise
        self._submit_state(self._full_state(), passing=True)

    def _full_state(self) -> bytes | None:
        """Return the full state before the next step, whose forward may have moved the buffers."""
        return self.state.capture(self._forwards.buffers_between)

    def _submit_state(self, state: bytes | None, *, passing: bool) -> None:
        if state is not None:
            t = self.state.steps
            self.channel.submit(partial(LogWriter.state, t=t, data=state, passing=passing))
