"""Micro-batches that were announced for the step to come, and which of them are in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tracer.joined import Key
from tracer.records import ID, RandomState
from tracer.watch.captures import ALL, Capture, Captures


@dataclass(eq=False)
class Observed:
    """What was announced of a micro-batch.

    Attributes:
        ids: Of its examples.
        weights: As they were given; None if they were not.
        payload: The batch, encoded, if batches are recorded.
        random_state: As it was before its forward.
        forwards: Its forward passes; more may follow if it was announced before them.
        zeroed: Whether gradients were zeroed before its forward.
        epoch: That its examples were drawn for, by a data set with seeds.
    """

    ids: tuple[ID, ...]
    weights: Tensor | None
    payload: bytes | None
    random_state: RandomState | None = None
    forwards: list[Capture] | None = None
    zeroed: bool = False
    epoch: int | None = None


class Pending:
    """Announced micro-batches, in order.

    A batch may be skipped after it was announced, before or after its backward pass, and trainers
    zero gradients between forward and backward pass. So what counts is whether its gradients are
    those that the step applies.

    Args:
        captures: Knows what became of the forward passes.
    """

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._all: list[Observed] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observed: Observed) -> None:
        """Add one; forget those whose forward never came, though gradients were zeroed for it."""
        self._forget_unbegun()
        self._all.append(observed)

    def clear(self) -> None:
        """Forget all."""
        self._all = []

    def gradients_zeroed(self, key: Key) -> None:
        """Keep those whose backward pass comes later; before gradients are zeroed.

        Args:
            key: Whose gradients; those of other optimizers stay, and what led to them.
        """
        seen = self._captures
        if key != ALL and seen.marks:
            return
        self._all = [
            one
            for one in self._all
            if not seen.is_in(one.forwards or []) and not seen.is_out(one.forwards or [])
        ]
        for one in self._all:
            one.zeroed = not one.forwards

    def in_step(self, key: Key) -> list[Observed]:
        """Return those whose gradients are there; all of them if nobody can know.

        Args:
            key: Whose step it is.
        """
        self._captures.forget_dropped()
        self._forget_unbegun()
        if any(self._captures.is_in(one.forwards or [], key) for one in self._all):
            return [one for one in self._all if self._may_be_in(one.forwards or [], key)]
        return list(self._all)

    def _may_be_in(self, forwards: list[Capture], key: Key) -> bool:
        known = any(one.used or one.graph is not None for one in forwards)
        return not known or self._captures.is_in(forwards, key)

    def _forget_unbegun(self) -> None:
        if self._captures.marks:
            self._all = [one for one in self._all if one.forwards or not one.zeroed]
