"""What is seen of a step that is about to be taken."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from tracer.codec.layout import Row, pack
from tracer.distributed.ranks import Ranks
from tracer.watch.forwards import ForwardWatch
from tracer.watch.group_look import Seen
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
        ranks: The run's processes.
    """

    def __init__(
        self,
        measurement: Measurement,
        forwards: ForwardWatch,
        last: LastStep,
        state: RunState,
        ranks: Ranks,
    ) -> None:
        self._measurement, self._forwards, self._ranks = measurement, forwards, ranks
        self._last, self._state = last, state
        self._buffers: Row | None = None

    def state_before(self) -> bytes | None:
        """Return the full state if one is due: before the optimizer's hooks, called on resuming."""
        self._measurement.require_same()
        self._ranks.require_same()
        return self._last.full_state() if self._state.is_due else None

    def begin(self, state: bytes | None) -> None:
        """Look before anything moves; write where the last step has led to."""
        with Unseen():
            self._buffers = pack(self._forwards.buffers)
            self._last.step_begins(self._buffers, state)

    def begin_again(self, before: list[int]) -> None:
        """Look again when the closure has run, which may have written parameters, too.

        Args:
            before: Versions of the parameters before it ran.
        """
        with Unseen():
            self._buffers = pack(self._forwards.buffers)
            if self._last.versions.now() != before:
                self._last.step_begins(self._buffers, None)

    def of(self, optimizer: Optimizer) -> Seen:
        """Look at one of the optimizers that step: right before it moves anything."""
        with Unseen():
            return self._measurement.seen(optimizer)

    def measured(self, seen: Sequence[Seen]) -> MeasuredStep | None:
        """Return what was seen of a step; None if that was nothing."""
        if self._buffers is None or not seen:
            return None
        return MeasuredStep(self._state.steps, tuple(seen), self._buffers)
