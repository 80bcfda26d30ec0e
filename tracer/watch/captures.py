"""Forward passes seen since the last micro-batch, and which one's random state belongs to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType

from torch import Tensor
from torch.autograd import Variable

from tracer.records import RandomState


@dataclass
class Capture:
    """Random state at the start of one forward.

    Attributes:
        used: A gradient flowed through it.
        landed: Parameters had gradients when that backward pass was over.
        graph: Dead once nobody holds the forward's graph; None if it has none.
    """

    random_state: RandomState
    used: bool = False
    landed: bool = False
    graph: ReferenceType[Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether no gradient flowed nor will."""
        return not self.used and self.graph is not None and self.graph() is None


class Captures:
    """What was caught since the last micro-batch.

    Args:
        parameters: Of the model.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._all: list[Capture] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def last(self) -> Capture | None:
        """What the running forward caught."""
        return self._all[-1] if self._all else None

    def add(self, state: RandomState) -> None:
        """Add the state of a forward that begins."""
        self._all.append(Capture(state))

    def use(self, capture: Capture) -> None:
        """Note that a gradient flows through it; inside the backward pass."""
        capture.used = True

        def over() -> None:
            capture.landed = self._any_gradient()

        Variable._execution_engine.queue_callback(over)

    def take(self) -> RandomState | None:
        """Return the state of the micro-batch that ends here, if any was caught."""
        used = [capture for capture in self._all if capture.used]
        chosen = (used or self._all)[:1]
        self.clear()
        return chosen[0].random_state if chosen else None

    def clear(self) -> None:
        """Forget all."""
        self._all = []

    def forget_over(self) -> None:
        """Forget all if no gradient comes from any: their batches were only looked at.

        Where parameters have gradients these may have flowed around what a forward returned.
        """
        if all(capture.is_over for capture in self._all) and not self._any_gradient():
            self.clear()

    def forget_used(self) -> None:
        """Forget forwards whose gradients were thrown away."""
        self._all = [capture for capture in self._all if not capture.used]

    def forget_dropped(self) -> None:
        """Do so if gradients are gone that were there: ``model.zero_grad()`` was called."""
        if any(capture.landed for capture in self._all) and not self._any_gradient():
            self.forget_used()

    def _any_gradient(self) -> bool:
        return any(p.grad is not None for p in self._parameters)
