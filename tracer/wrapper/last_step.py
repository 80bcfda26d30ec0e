"""The last step, from when it was taken until what it led to is on file."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from tracer.codec.layout import Row, pack
from tracer.log.write.writer import LogWriter
from tracer.thread.log_channel import LogChannel
from tracer.watch.forwards import ForwardWatch
from tracer.watch.measurement import Measurement
from tracer.watch.state_capture import RunState
from tracer.watch.versions import Versions
from tracer.wrapper import moved
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.pending_step import PendingStep


class LastStep:
    """Writes a step once the parameters that it led to are final.

    Args:
        file: The log.
        channel: The way to it.
        model: The module that owns the parameters.
        forwards: Watches the model.
        measurement: Knows the parameters.
        state: What the run is after its last step.

    Attributes:
        pending: The step, until it is written.
        busy: Whether parameters have moved and what is kept here has not yet.
        versions: Knows whether parameters moved since the last step was kept, or begun.
    """

    def __init__(
        self,
        file: LogFile,
        channel: LogChannel,
        model: nn.Module,
        forwards: ForwardWatch,
        measurement: Measurement,
        state: RunState,
    ) -> None:
        self._file, self._channel, self._model = file, channel, model
        self._forwards, self._measurement, self._state = forwards, measurement, state
        self.pending: PendingStep | None = None
        self.busy = self._stepping = self._taken = False
        self._usual = False  # whether parameters were changed before the last step, too
        self._observed: list[int] | None = None  # versions when a micro-batch was announced
        self.versions = Versions(measurement.parameters.values())

    @property
    def between(self) -> bool:
        """Whether a step was begun that is not kept here."""
        return self.busy or (self._stepping and self.versions.moved)

    def step_begins(self, buffers: Row, state: bytes | None) -> None:
        """Write the pending step: it has led to where the next one begins."""
        self.settle(buffers, state)
        self._usual = self._taken and self.versions.moved
        self.versions.note()
        self._stepping = True

    def keep(self, step: PendingStep | None) -> None:
        """Keep a step that was taken; None is one that was not, or is not logged."""
        self.pending, self._stepping, self.busy = step, False, False
        self._observed, self._taken = None, self._taken or step is not None
        self.versions.note()

    def settle_now(self) -> None:
        """Write the pending step as parameters and buffers are now."""
        self.settle(pack(self._forwards.current_buffers()))
        self.versions.note()
        if self._state.is_due:  # of use until the next step brings the final one
            self._submit_state(self.full_state(), passing=True)

    def settle_early(self) -> None:
        """Write the pending step as it is: what follows may change parameters."""
        if self.pending is not None and not self.between and not self.versions.moved:
            self.settle(pack(self._forwards.current_buffers()))

    def settle_last(self) -> None:
        """Write the pending step, if that is not done, and the final state."""
        if self.pending is not None or self._usual or not self._channel.started:
            buffers = pack(self._forwards.current_buffers())
            try:
                self.settle(buffers)
            except KeyboardInterrupt:  # it may have ended the waiting for the writer only
                if not self.busy:
                    self.settle(buffers)
                raise
        self._submit_state(self.full_state(), passing=True)

    def observed(self) -> str | None:
        """Return what to say if parameters moved between two micro-batches of a step."""
        if self._stepping:  # its closure announces them
            return None
        before, self._observed = self._observed, self.versions.now()
        if before is None or before == self._observed:
            return None
        return moved.without_step("between two calls of observe()")

    def unknown(self) -> str | None:
        """Return what to say if parameters moved between steps of a log with digests of them."""
        if self._file.snapshots.is_dense or not (self._taken and self.versions.moved):
            return None
        return moved.between(self._state.steps)

    def moved(self, *, ending: bool) -> str | None:
        """Return what to say if parameters moved since the last step, and not by a step.

        Args:
            ending: Whether the log is about to be closed.
        """
        if self.between or not self.versions.moved:
            return None
        if not self._taken:
            return moved.without_step("since tracing began")
        if ending and not self._usual:
            return moved.after(self._state.steps - 1, kept=self.pending is None)
        return (
            moved.without_step("since the last step") if self._forwards.captures.turns() else None
        )

    def settle(self, buffers: Row, state: bytes | None = None) -> None:
        """Write the pending step, which led to where we are; begin the log if there is none."""
        pending, begins = self.pending, not self._channel.started
        if begins:
            self.busy = True
            creation = self._file.creation(self._model, self._measurement, self._state.random)
            self._channel.start(creation, self._measurement.parameters)
        slot = self._channel.take()  # nothing is lost if Ctrl-C ends the waiting
        self.busy = True
        if begins:
            self._channel.put(slot, partial(LogWriter.begin, threads=torch.get_num_threads()))
        elif pending is None:
            self._channel.put(slot, lambda writer, row: writer.amend(row, buffers))
        else:
            self._channel.put(slot, lambda writer, row: pending.write(writer, row, buffers))
            self.pending = None
        self._submit_state(state, passing=False)
        self.busy = False

    def full_state(self) -> bytes | None:
        """Return the full state before the next step, whose forward may have moved the buffers."""
        zeros = self._forwards.captures.keeps_zeros
        return self._state.capture(self._forwards.buffers_between, keeps_zeros=zeros)

    def _submit_state(self, state: bytes | None, *, passing: bool) -> None:
        if state is not None:
            t = self._state.steps
            self._channel.submit(partial(LogWriter.state, t=t, data=state, passing=passing))
