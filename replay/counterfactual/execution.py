"""Takes the steps of a run with other weights of some examples, and else as the run did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from replay.counterfactual.change import Change
from replay.counterfactual.clipping import Clips, norms_of
from replay.evaluate.state import State
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
        if any(micro is one for one in self._changed):
            return as_sum(losses, micro, count)
        return super().joined(losses, micro, count)

    @torch.no_grad()
    def clip(self, step: Step, held: list[Tensor]) -> None:
        """Clip as the run did, and a changed gradient by its own norm."""
        if self.change is None:
            before = norms_of(held)
            super().clip(step, held)
            self.clips.observe(step, before, norms_of(held))
            return
        factor = self.clips.factor(step, norms_of(held)) if self.clips.found else 1.0
        if factor < 1:
            torch._foreach_mul_([p.grad for p in held if p.grad is not None], factor)
