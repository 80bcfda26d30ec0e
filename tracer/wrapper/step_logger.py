"""Takes a wrapped optimizer's steps and turns each into a record.

A step is written when the parameters that it led to are final: when the next step begins, at
``flush`` or at ``close``. So whatever touches them between two steps is in the log.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracer.codec.layout import Row, fields, pack, row_bytes
from tracer.errors import TracingError
from tracer.log.write.creation import LogOptions, create_log, environment
from tracer.log.write.resumption import Resumption, last_state, reopen
from tracer.log.write.writer import LogWriter
from tracer.records import MicroBatch, ParameterGroup, Step
from tracer.thread.log_channel import Feed
from tracer.watch.forwards import Recorder
from tracer.watch.measurement import Gradients, Measurement, step_measured
from tracer.watch.state_capture import States, restore
from tracer.wrapper.forecast import Forecast, forecast
from tracer.wrapper.pending import Pending


class StepLogger:
    """Steps one optimizer and logs it.

    Args:
        path: The log.
        optimizer: Does the steps.
        model: The module that owns the parameters.
        recorder: Watches the model.
        attributes: Metadata of the run.
        options: How the log is written.

    Attributes:
        steps: How many steps were taken, also after tracing has ended.
        feed: The way to the log.
    """

    def __init__(
        self,
        path: Path,
        optimizer: Optimizer,
        model: nn.Module,
        recorder: Recorder,
        attributes: Mapping[str, Any],
        options: LogOptions,
    ) -> None:
        self.path, self.model, self.steps = path, model, 0
        self._optimizer, self._recorder = optimizer, recorder
        self._measurement = Measurement(optimizer, model)
        self._attributes, self._options = dict(attributes), options
        row = row_bytes(fields(self._measurement.parameters))
        row = row if options.compression == "none" else row // 3  # about
        self._states = States(model, optimizer, options.state_every, row)
        self._pending: Pending | None = None
        self._random = recorder.random_state()  # after the last step
        self._epoch: int | None = None  # of the last step
        # between: parameters have moved, what is kept here has not yet
        self._closed = self._between = False
        self._owner, self.feed = os.getpid(), Feed(path)

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
        self.feed.require_writable()
        shared = ("optimizer", "reduction", "record", "cuda_devices")
        found = last_state(self.path, {name: self._attributes[name] for name in shared})
        if found is None:
            return None
        restore(found.state, self.model, self._optimizer)
        self._random, self.steps = self._recorder.random_state(), found.step
        self._epoch = found.state["epoch"]
        if found.step:
            again = partial(reopen, self.path, found.step, self._options.sync_every)
            self.feed.go_on(again, self._measurement.parameters)
        return found

    def run(
        self,
        closure: Callable[[], Any] | None,
        batches: Callable[[], list[MicroBatch]],
        *,
        epoch: int | None,
        clip_factor: Callable[[], float],
    ) -> Any:
        """Take one step; return what the optimizer returned."""
        self.feed.report()
        if self._between:  # and the user went on
            self.feed.stop(f"a step of {self.path} was interrupted before it was put down")
        if self.feed.stopped:
            self._pending = None
            result = self._optimizer.step(closure)
            self.steps += not self._measurement.skipped()
            return result
        self._measurement.require_same()
        # before the optimizer's own hooks, which a resumed run will call again
        state = self._state() if self._states.due(self.steps) else None
        found: list[tuple[tuple[ParameterGroup, ...], Gradients]] = []

        def measure() -> None:
            groups = self._measurement.groups()
            with torch.no_grad():
                if not found:  # the last step has led to where this one begins
                    self._settle(self._buffers(), state)
                found.append((groups, self._measurement.gradients()))
            self._between = True

        def evaluate() -> Any:
            loss = closure() if closure is not None else None
            measure()
            return loss

        if closure is None:
            result = step_measured(self._optimizer, measure)
        else:
            result = self._optimizer.step(evaluate)
        if self._measurement.skipped():
            self._between = False
            return result
        groups, gradients = found[0]  # at the parameters before the step
        step = Step(
            index=self.steps,
            epoch=epoch,
            micro_batches=tuple(batches()),
            groups=groups,
            gradient_norm=math.nan,  # follows
            clip_factor=clip_factor(),
            without_gradient=gradients.without,
            frozen=self._measurement.frozen(),
        )
        self.steps, self._epoch = self.steps + 1, epoch
        self._random = self._recorder.random_state()
        self._pending = Pending(step, gradients.norms, self._buffers())
        self._between = False
        return result

    @torch.no_grad()
    def flush(self) -> None:
        """Return when every step so far is on file, the last one as parameters are now."""
        if self.feed.started and not self.feed.stopped and not self._closed:
            if not self._between and os.getpid() == self._owner:
                self._settle(pack(self._recorder.current_buffers()))
                if self._states.due(self.steps):  # of use until the next step brings the final one
                    self._submit_state(self._state(), passing=True)
            self.feed.flush()

    @torch.no_grad()
    def close(self) -> None:
        """Write what is left, close the file, leave the model alone; a forked copy only that."""
        first, self._closed = not self._closed, True
        self._recorder.close()
        if os.getpid() != self._owner or self.feed.stopped:
            return
        try:
            if first and not self._between:  # an exception in a step leaves parameters half moved
                buffers = pack(self._recorder.current_buffers())
                try:
                    self._settle(buffers)
                except KeyboardInterrupt:  # it may have ended the waiting for the writer only
                    if not self._between:
                        self._settle(buffers)
                    raise
                self._submit_state(self._state(), passing=True)
        finally:
            self.feed.close()

    def give_up(self) -> None:
        """Write no step."""
        self._closed = True
        self.feed.close()

    def forecast(self, steps: int) -> Forecast:
        """Return what a run of so many steps takes."""
        return forecast(self.path, steps, self.model, self._random)

    def _buffers(self) -> Row:
        """Return ``β_t``: the buffers before the step's first training forward, if one was seen."""
        seen = self._recorder.buffers
        return pack(self._recorder.current_buffers() if seen is None else seen)

    def _settle(self, buffers: Row, state: bytes | None = None) -> None:
        """Write the pending step, which led to where we are; begin the log if there is none."""
        pending, begins = self._pending, not self.feed.started
        if begins:
            self._between = True
            self.feed.start(self._creation(), self._measurement.parameters)
        slot = self.feed.take()  # nothing is lost if Ctrl-C ends the waiting
        self._between = True
        if begins:
            self.feed.put(slot, partial(LogWriter.begin, threads=torch.get_num_threads()))
        elif pending is None:
            self.feed.put(slot, lambda writer, row: writer.amend(row, buffers))
        else:
            self.feed.put(slot, lambda writer, row: pending.write(writer, row, buffers))
            self._pending = None
        self._submit_state(state, passing=False)
        self._between = False

    def _creation(self) -> Callable[[], LogWriter]:
        """Return what creates the log; all it needs is looked up here, in the training thread."""
        random = self._recorder.random_state()
        return partial(
            create_log,
            self.path,
            {n: p.detach() for n, p in self._measurement.parameters.items()},
            {n: b.detach() for n, b in self.model.named_buffers()},
            hyperparameters=self._measurement.hyperparameters(),
            random_bytes=len(random.cpu) + sum(len(s) for s in random.cuda.values()),
            attributes={**self._attributes, **environment()},
            options=self._options,
        )

    def _state(self) -> bytes | None:
        """Return the full state before the next step, whose forward may have moved the buffers."""
        return self._states.capture(self._random, self._epoch, self._recorder.buffers)

    def _submit_state(self, state: bytes | None, *, passing: bool) -> None:
        if state is not None:
            self.feed.submit(partial(LogWriter.state, t=self.steps, data=state, passing=passing))
