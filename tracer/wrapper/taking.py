"""One step of a run while it is taken: what is seen of it, and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from tracer.watch.group_look import Seen
from tracer.wrapper.last_step import LastStep
from tracer.wrapper.pending_step import MeasuredStep
from tracer.wrapper.step_look import StepLook
from tracer.wrapper.stepping import Call, take_step

Attempt = Callable[[Callable[[], Any]], Any]


class Taking:
    """Takes one step and looks at what it is about to do: last when a closure has run once.

    Args:
        call: Of the optimizer's ``step``.
        look: Looks at model and optimizer.
        last: The step before.
        attempt: Calls what looks; what goes wrong there ends tracing and no training.
        state: The full state before the step, if it is one that is kept.
        announce: Called when a closure has run for the first time.
    """

    def __init__(
        self,
        call: Call,
        look: StepLook,
        last: LastStep,
        attempt: Attempt,
        state: bytes | None,
        announce: Callable[[], object],
    ) -> None:
        self._call, self._look, self._last, self._attempt = call, look, last, attempt
        self._state, self._announce = state, announce
        self._seen: list[Seen | None] = []

    def take(self) -> tuple[Any, MeasuredStep | None]:
        """Return what the optimizer returned, and what was seen; None if that was nothing."""
        result = take_step(self._call, self)
        return result, self._look.measured([one for one in self._seen if one is not None])

    def begins(self) -> None:
        """See ``Looking``."""
        self._attempt(partial(self._look.begin, self._state))
        self._last.busy |= self._call.closure is None

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """See ``Looking``."""
        before = self._last.versions.now()
        loss = closure()
        self._attempt(partial(self._look.begin_again, before))
        self._seen = []
        self._announce()
        self._last.busy = True
        return loss

    def look_at(self, optimizer: Optimizer) -> None:
        """See ``Looking``."""
        self._seen.append(self._attempt(partial(self._look.of, optimizer)))


class TakingPart:
    """Takes one more optimizer's part of the last step, and looks at what it applies.

    Args:
        call: Of its ``step``.
        look: Looks at it.
        attempt: Calls what looks.
    """

    def __init__(self, call: Call, look: StepLook, attempt: Attempt) -> None:
        self._call, self._look, self._attempt = call, look, attempt
        self._seen: Seen | None = None

    def take(self) -> tuple[Any, Seen | None]:
        """Return what the optimizer returned, and what was seen; None if that was nothing."""
        return take_step(self._call, self), self._seen

    def begins(self) -> None:
        """See ``Looking``; the step has begun."""

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """See ``Looking``; it computes no gradient."""
        return closure()

    def look_at(self, optimizer: Optimizer) -> None:
        """See ``Looking``."""
        self._seen = self._attempt(partial(self._look.of, optimizer))
