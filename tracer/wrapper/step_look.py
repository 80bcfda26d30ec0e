"""What is seen of a step that is about to be taken."""

from __future__ import annotations

from tracer.codec.layout import Row, pack
from tracer.watch.forwards import ForwardWatch
from tracer.watch.measurement import Measurement
from tracer.watch.state_capture import RunState
from tracer.watch.unseen import Unseen
from tracer.wrapper.last_step import LastStep
from tracer.wrapper.pending_step import MeasuredStep


class StepLook:
    """Looks at model and optimizer before a step, which is where the last one has led to.

    Args:
        measurement: Looks at hyperparameters and gradients.
        forwards: Knows the buffers before the step's forward.
        last: The last step.
        state: What the run is after it.
    """

    def __init__(
        self, measurement: Measurement, forwards: ForwardWatch, last: LastStep, state: RunState
    ) -> None:
        self._measurement, self._forwards = measurement, forwards
        self._last, self._state = last, state

    def state_before(self) -> bytes | None:
        """Return the full state if one is due: before the optimizer's hooks, called on resuming."""
        self._measurement.require_same()
        return self._last.full_state() if self._state.is_due else None

    def begin(self, state: bytes | None) -> MeasuredStep:
        """Look before anything moves; write where the last step has led to."""
        with Unseen():
            buffers = pack(self._forwards.buffers)
            self._last.step_begins(buffers, state)
            return self._measured(buffers)

    def begin_again(self, before: list[int]) -> MeasuredStep:
        """Look again when the closure has run, which may have written parameters, too.

        Args:
            before: Versions of the parameters before it ran.
        """
        with Unseen():
            buffers = pack(self._forwards.buffers)
            if self._last.versions.now() != before:
                self._last.step_begins(buffers, None)
            return self._measured(buffers)

    def _measured(self, buffers: Row) -> MeasuredStep:
        groups, gradients = self._measurement.groups(), self._measurement.gradients()
        return MeasuredStep(self._state.steps, groups, gradients, buffers)
