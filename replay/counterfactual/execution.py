"""Takes the steps of a run with other weights of some examples, and else as the run did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from replay.counterfactual.change import Change
from replay.counterfactual.clipping import Clips, norms_of
from replay.counterfactual.lanes import Lanes
from replay.counterfactual.refused import clipped_apart
from replay.evaluate.state import State
from replay.states.applied_again import scaled
from replay.states.execution import Execution, as_sum
from tracer.records import MicroBatch, Step


class ChangedExecution(Execution):
    """Takes steps under a change; without one it takes those of the run.

    Buffers go on from what the forward passes make of them. The examples that are removed still
    take part in a forward pass: BatchNorm sees them, and losses over pairs do.

    Attributes:
        change: Which weights are others; None is no change.
        clips: How the run clipped, as seen while it was taken without a change.
    """

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.change: Change | None = None
        self.clips = Clips()
        self._changed: tuple[MicroBatch, ...] = ()

    def lanes(self) -> Lanes | None:
        """Return what takes several runs together, unless this run does what that cannot.

        It cannot clip, nor add a penalty, nor take one backward pass through all micro-batches,
        nor have several losses.
        """
        several = isinstance(self._task.loss, Mapping) or self.joining.together
        if self.clips.found or several or self._task.penalty is not None:
            return None
        known = (self._log, self._task, self._bound, self._device)
        return Lanes(*known, self._kinds, self.joining.part)

    def advance(self, step: Step) -> None:
        """Take a step from where it stands."""
        if self.change is not None:
            step, self._changed = self.change.applied(step)
        self.take(step, self.buffers())

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers as the last forward pass left them."""
        return {name: b.detach() for name, b in self._bound.module.named_buffers()}

    def state(self) -> State:
        """Return where it stands, copies on the CPU."""
        buffers = {name: b.cpu().clone() for name, b in self.buffers().items()}
        return State(self.parameters(), buffers)

    def joined(self, losses: Tensor, micro: MicroBatch, count: int) -> Tensor:
        """Return a micro-batch's part of the objective; as the run computed it, if unchanged."""
        if any(micro.coefficients is one.coefficients for one in self._changed):
            return as_sum(losses, micro, count)
        return super().joined(losses, micro, count)

    def clip(self, step: Step, gradients: dict[str, Tensor], *, first: bool) -> dict[str, Tensor]:
        """Clip as the run did, and a changed gradient by its own norm.

        Raises:
            UnsupportedRuleError: The run clipped groups, parameters or elements by themselves.
        """
        if self.change is None:
            before = norms_of(gradients)
            found = super().clip(step, gradients, first=first)
            if self.applied.apart:
                raise clipped_apart(step)
            self.clips.observe(step, before, norms_of(found))
            return found
        factor = self.clips.factor(step, norms_of(gradients)) if self.clips.found else 1.0
        return scaled(gradients, factor) if factor < 1 else gradients
