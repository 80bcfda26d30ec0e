"""Forward passes since the last micro-batch, and which of them belong to it and to the step.

Of many passes without a step only those are kept that may yet belong to one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType

from torch import Tensor
from torch.autograd import Variable

from tracer.joined import Key
from tracer.records import RandomState

ALL: Key = ""  # of the optimizers

_Seen = tuple[ReferenceType[Tensor], int] | None  # a gradient and its version


@dataclass(eq=False)
class Capture:
    """What was there at the start of one forward.

    Attributes:
        random_state: Of torch's generators.
        buffers: Copies of the model's; None if an earlier forward's begin the step.
        passes: Backward passes that were over by then.
        flowed: How often gradients had been thrown away when one flowed through it.
        graph: Dead once nobody holds the forward's graph; None if it has none.
    """

    random_state: RandomState
    buffers: dict[str, Tensor] | None
    passes: int
    flowed: int | None = None
    graph: ReferenceType[Any] | None = None

    @property
    def used(self) -> bool:
        """Whether a gradient flowed through it."""
        return self.flowed is not None

    @property
    def is_over(self) -> bool:
        """Whether no gradient flowed nor will."""
        return not self.used and self.graph is not None and self.graph() is None

    @property
    def may_be_used(self) -> bool:
        """Whether a gradient may yet flow through it."""
        return not self.used and self.graph is not None and self.graph() is not None


class Captures:
    """What was caught since the last step.

    Args:
        parameters: Of the model.

    Attributes:
        announced_first: Whether the micro-batch of the forwards to come is announced already.
        keeps_zeros: Whether gradients were zeroed last, and not made None.
        marks: Whether any forward of the run was ever marked as used: the model is seen.
        keys: Of the optimizers, if there are several.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._all: list[Capture] = []  # since the last micro-batch
        self._first: Capture | None = None  # of the step, if its micro-batch has ended
        self.announced_first = False
        self._drops = self._passes = 0  # gradients thrown away, backward passes that are over
        self._dropped: dict[Key, int] = {}  # the last of the drops of an optimizer's gradients
        self.keys: tuple[Key, ...] = ()
        self._turns: dict[int, int] = {}  # drops, by passes before the forwards of these gradients
        self.marks = self.keeps_zeros = False
        self._gradients = self._seen_gradients()

    @property
    def last(self) -> Capture | None:
        """What the running forward caught."""
        return self._all[-1] if self._all else None

    @property
    def first(self) -> Capture | None:
        """The forward that the step begins with, as far as that is known."""
        return first_used([self._first, *self._all])

    def turns(self, key: Key = ALL) -> int:
        """Return how often forwards and then a backward pass made gradients that are there."""
        return sum(drops >= self._last_drop(key) for drops in self._turns.values())

    def add(self, state: RandomState, buffers: dict[str, Tensor] | None) -> None:
        """Add what is there when a forward begins."""
        if not self._turns:
            self.keeps_zeros = self._any_gradient()
        first = first_used(self._all)
        self._all[1:] = [c for c in self._all[1:] if c is first or c.may_be_used]
        self._all.append(Capture(state, buffers, self._passes))

    def use(self, capture: Capture) -> None:
        """Note that a gradient flows through it; inside the backward pass."""
        capture.flowed, self.marks = self._drops, True
        before = self._seen_gradients()

        def over() -> None:
            self._passes += 1
            if self._differ_from(before):  # not of an input, nor of other tensors in their place
                self._turns[capture.passes] = self._drops

        Variable._execution_engine.queue_callback(over)

    def take(self) -> list[Capture]:
        """Return the forwards of the micro-batch that ends here."""
        taken, self._all, self.announced_first = self._all, [], False
        self._first = first_used([self._first, *taken])
        return taken

    def announce_first(self) -> list[Capture]:
        """Return where the forwards of the micro-batch that begins here will be."""
        self.take()
        self.announced_first = True
        return self._all

    def clear(self) -> None:
        """Forget all: the next step begins."""
        self._all, self._first, self.announced_first = [], None, False
        self._turns.clear()
        self.note_gradients()

    def forget_over(self) -> None:
        """Forget all if no gradient comes from any: their batches were only looked at.

        Where parameters have gradients these may have flowed around what a forward returned, if
        that is how the model is used.
        """
        if all(c.is_over for c in self._all) and (self.marks or not self._any_gradient()):
            self._all = []

    def forget_idle(self) -> None:
        """Forget forwards since the last micro-batch: no gradient comes from them."""
        self._all, self.announced_first = [], False

    def gradients_dropped(self, key: Key = ALL) -> None:
        """Forget forwards whose gradients were thrown away, those of one optimizer or of all."""
        self._drops += 1
        self._dropped[key] = self._drops
        last = self._last_drop(ALL)
        self._turns = {k: drops for k, drops in self._turns.items() if drops >= last}
        if not self.announced_first or self.is_out(self._all):
            self._all = [c for c in self._all if not c.used or self.is_in([c])]
            self.announced_first = False
        if self._first is not None and self._first.used and not self.is_in([self._first]):
            self._first = None

    def forget_dropped(self) -> None:
        """Do so if gradients are gone that were there: ``model.zero_grad()`` was called."""
        if self._turns and not self._any_gradient():
            self.gradients_dropped()

    def note_gradients(self, *, zeroed: bool = False) -> None:
        """Remember the gradients that are there when a step is over, or when they are zeroed."""
        if zeroed:
            self.keeps_zeros = self._any_gradient()
        elif not self.marks:
            self.keeps_zeros = any(
                was is not None and was[0]() is not None for was in self._gradients
            )
        self._gradients = [] if self.marks else self._seen_gradients()

    def is_in(self, forwards: Sequence[Capture], key: Key = ALL) -> bool:
        """Return whether a micro-batch of these forwards led to gradients that are there.

        Args:
            forwards: Of the micro-batch.
            key: Whose gradients; ``ALL``: anybody's.
        """
        last = self._last_drop(key)
        return any(one.flowed is not None and one.flowed >= last for one in forwards)

    def is_out(self, forwards: Sequence[Capture]) -> bool:
        """Return whether no gradient that is there, or comes, is of a micro-batch."""
        if self.is_in(forwards):
            return False
        known = [capture for capture in forwards if capture.used or capture.graph is not None]
        if known:
            return not any(capture.may_be_used for capture in known)
        return not self.marks and self._differ_from(self._gradients)

    def _last_drop(self, key: Key) -> int:
        """Return the drop after which gradients of an optimizer, or of any of them, are there."""
        whole, found = self._dropped.get(ALL, 0), self._dropped.get
        if key != ALL:
            return max(whole, found(key, 0))
        return max(whole, min((found(one, 0) for one in self.keys), default=0))

    def _any_gradient(self) -> bool:
        return any(p.grad is not None for p in self._parameters)

    def _seen_gradients(self) -> list[_Seen]:
        found = [p.grad for p in self._parameters]
        return [None if g is None else (weakref.ref(g), g._version) for g in found]

    def _differ_from(self, noted: list[_Seen]) -> bool:
        """Return whether there are other gradients than were noted."""
        return not all(_same(p.grad, one) for p, one in zip(self._parameters, noted, strict=True))


def _same(gradient: Tensor | None, noted: _Seen) -> bool:
    if gradient is None or noted is None:
        return gradient is None and noted is None
    return noted[0]() is gradient and gradient._version == noted[1]


def first_used(captures: Sequence[Capture | None]) -> Capture | None:
    """Return the first one that was used, else the first one."""
    known = [capture for capture in captures if capture is not None]
    return next((one for one in known if one.used), known[0] if known else None)
