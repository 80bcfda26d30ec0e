"""Forward passes seen since the last micro-batch, and which of them belong to it and to the step.

Of many passes without a step only those are kept that may yet belong to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType

from torch import Tensor
from torch.autograd import Variable

from tracer.records import RandomState


@dataclass
class Capture:
    """What was there at the start of one forward.

    Attributes:
        random_state: Of torch's generators.
        buffers: Copies of the model's; None if an earlier forward's begin the step.
        used: A gradient flowed through it.
        landed: Parameters had gradients when that backward pass was over.
        graph: Dead once nobody holds the forward's graph; None if it has none.
    """

    random_state: RandomState
    buffers: dict[str, Tensor] | None
    used: bool = False
    landed: bool = False
    graph: ReferenceType[Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether no gradient flowed nor will."""
        return not self.used and self.graph is not None and self.graph() is None

    @property
    def may_be_used(self) -> bool:
        """Whether a gradient may yet flow through it."""
        return not self.used and self.graph is not None and self.graph() is not None


class Captures:
    """What was caught since the last micro-batch.

    Args:
        parameters: Of the model.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._all: list[Capture] = []
        self._first: Capture | None = None  # of the step, if its micro-batch has ended

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def last(self) -> Capture | None:
        """What the running forward caught."""
        return self._all[-1] if self._all else None

    @property
    def first(self) -> Capture | None:
        """The forward that the step begins with, as far as that is known."""
        return _first_used([self._first, *self._all])

    def add(self, state: RandomState, buffers: dict[str, Tensor] | None) -> None:
        """Add what is there when a forward begins."""
        first = _first_used(self._all)
        self._all = [c for c in self._all if c is first or c is self._all[0] or c.may_be_used]
        self._all.append(Capture(state, buffers))

    def use(self, capture: Capture) -> None:
        """Note that a gradient flows through it; inside the backward pass."""
        capture.used = True

        def over() -> None:
            capture.landed = self._any_gradient()

        Variable._execution_engine.queue_callback(over)

    def take(self) -> RandomState | None:
        """Return the state of the micro-batch that ends here, if any was caught."""
        chosen = _first_used(self._all)
        self._first, self._all = _first_used([self._first, chosen]), []
        return None if chosen is None else chosen.random_state

    def clear(self) -> None:
        """Forget all: the next step begins."""
        self._all, self._first = [], None

    def forget_over(self) -> None:
        """Forget all if no gradient comes from any: their batches were only looked at.

        Where parameters have gradients these may have flowed around what a forward returned.
        """
        if all(capture.is_over for capture in self._all) and not self._any_gradient():
            self._all = []

    def forget_used(self) -> None:
        """Forget forwards whose gradients were thrown away."""
        self._all = [capture for capture in self._all if not capture.used]
        if self._first is not None and self._first.used:
            self._first = None

    def forget_dropped(self) -> None:
        """Do so if gradients are gone that were there: ``model.zero_grad()`` was called."""
        if any(capture.landed for capture in self._all) and not self._any_gradient():
            self.forget_used()

    def _any_gradient(self) -> bool:
        return any(p.grad is not None for p in self._parameters)


def _first_used(captures: Sequence[Capture | None]) -> Capture | None:
    """Return the first one that was used, else the first one."""
    known = [capture for capture in captures if capture is not None]
    return next((one for one in known if one.used), known[0] if known else None)
