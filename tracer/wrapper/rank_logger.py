"""Takes the steps of a rank that does not write the log, and tells rank 0 what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tracer.distributed.part import Part
from tracer.distributed.ranks import Ranks
from tracer.errors import warn
from tracer.records import MicroBatch
from tracer.watch.forwards import ForwardWatch
from tracer.watch.skipped_steps import SkippedSteps
from tracer.watch.state_capture import RunState
from tracer.watch.versions import Versions
from tracer.wrapper.log_file import LogFile
from tracer.wrapper.logger import Logger
from tracer.wrapper.stepping import Call, take_step


class _Announcing:
    """Looks at nothing of a step, and announces micro-batches when its closure has run once."""

    def __init__(self, announce: Callable[[], object]) -> None:
        self._announce = announce

    def begins(self) -> None:
        """Look at nothing: rank 0 does."""

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """Run the closure for the first time."""
        loss = closure()
        self._announce()
        return loss

    def look_at(self, optimizer: Optimizer) -> None:
        """Look at nothing: rank 0 does."""


class RankLogger(Logger):
    """Steps one optimizer of a distributed run; its parameters are those of rank 0.

    Args:
        file: The log that rank 0 writes.
        optimizer: Does the steps.
        model: The module that owns the parameters.
        forwards: Watches the model.
        skips: Knows which steps a GradScaler skipped.
        ranks: The run's processes; the others wait for this one.

    Raises:
        TracingError: Rank 0 has no wrapper, or its run is not one of this model and optimizer.
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
        self._forwards, self._skips = forwards, skips
        self._ranks, self._stopped = ranks, False
        self.state = RunState(model, optimizer, forwards.devices, every=None, row_bytes=1)
        steps, state = ranks.beginning(forwards.devices)
        if state is not None:
            self.state.restore(steps, state)
        self._own = Versions(ranks.own.values())
        ranks.began(self.state.random)

    @property
    def has_no_step(self) -> bool:
        """False: rank 0 says so."""
        return False

    def is_on_file(self) -> bool:
        """Return False: rank 0 knows."""
        return False

    def step(self, call: Call, announce: Callable[[], object]) -> tuple[Any, Any]:
        """Take one step; see ``Logger``."""
        result = take_step(call, _Announcing(announce))
        return result, None if self._skips.skipped_inside(call.optimizer) else True

    def step_along(self, call: Call, clip_factor: float) -> Any:
        """Take one more optimizer's part of the last step; see ``Logger``."""
        return call.make()

    def keep(
        self,
        measured: Any,
        micro_batches: list[MicroBatch],
        *,
        epoch: int | None,
        clip_factor: float,
    ) -> None:
        """Tell rank 0 the step that was taken; what it applied is the same there."""
        index = self.state.steps
        self.state.step_taken(epoch)
        self._say_own()
        if self._stopped:
            return
        try:
            self._ranks.say(Part(index, tuple(micro_batches), self.state.random))
        except RuntimeError as error:
            self._stopped = True
            warn(
                f"tracing stopped on rank {self._ranks.rank}: rank 0, which writes {self.path}, "
                f"has ended ({error}); training continues without tracing."
            )

    def observed(self) -> None:
        """Say nothing: rank 0 does."""

    def settle_early(self) -> None:
        """Do nothing: rank 0 does."""

    def flush(self, *, state: bool = False) -> None:
        """Return at once: rank 0 waits until this rank's part is on file."""

    def close(self) -> None:
        """End this rank's part; a forked copy leaves it alone."""
        first, self._closed = not self._closed, True
        self._forwards.detach()
        if first and self.is_here and not self._stopped:
            self._ranks.end()

    def give_up(self) -> None:
        """Tell nothing."""
        self._closed = True

    def _say_own(self) -> None:
        """Say once that a buffer of this rank's own has moved, of which the log has rank 0's."""
        if not self._own.moved:
            return
        self._own = Versions([])
        warn(
            f"a forward on rank {self._ranks.rank} writes into its own buffers, as "
            f"{next(iter(self._ranks.own))!r}, and the log has those of rank 0: this run will not "
            "reproduce if gradients depend on them.\n"
            "1. Let rank 0's be everybody's: DistributedDataParallel(forward_sync_buffers=True), "
            "before torch 2.13 broadcast_buffers=True."
        )
