"""The ranks of a run: which one this is, and what they tell each other.

Rank 0 writes the log. A step of W ranks is a step of all their micro-batches, with coefficients
``1/(W k b)``, since DistributedDataParallel averages gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from tracer.codec.nested import decode, encode
from tracer.distributed.coupled import coupled
from tracer.distributed.data_parallel import (
    check_unchanged,
    data_parallel,
    is_coupled,
    own_buffers,
)
from tracer.distributed.gathering import END, Gathering
from tracer.distributed.link import Link
from tracer.distributed.meeting import Meeting, failed_on, patience
from tracer.distributed.part import Part, packed
from tracer.errors import TracingError
from tracer.full_state import digest
from tracer.records import MicroBatch, RandomState

_FAILURE, _STATE, _STEPS, _RANDOM = "failure", "state", "steps", "random"


class Ranks:
    """One rank among those of a run; without DistributedDataParallel there is this one alone.

    Args:
        model: As the wrapper was given it.

    Attributes:
        rank: From 0 on; 0 writes.
        size: How many there are.
        own: Buffers that each has for itself, and that forward passes may depend on.
    """

    def __init__(self, model: Any) -> None:
        self.rank, self.size = 0, 1
        self.own: dict[str, Tensor] = {}
        self._spread = data_parallel(model)
        self._link: Link | None = None
        self._gathering: Gathering | None = None
        if self._spread is not None:
            group = self._spread.process_group
            self.rank, self.size = group.rank(), group.size()
            self.own = own_buffers(self._spread)
            self._couples = is_coupled(model)
            self._meeting = Meeting(group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have a wrapper made here; where that fails, tell the other ranks why."""
        try:
            yield
        except Exception as error:
            with suppress(RuntimeError):  # they have ended
                self._fail(str(error))
            raise

    def meet(self, given: Mapping[str, Any]) -> None:
        """Return once every rank is here and was given the same.

        Raises:
            TracingError: A rank is missing, has failed, or was given something else.
        """
        if self._spread is not None:
            self._meeting.meet({**given, "buffers": digest(self.own)})
            group = self._spread.process_group
            self._link = Link(group, patience(group))

    def require_same(self) -> None:
        """Raise TracingError if the model is not spread over ranks any more as it was."""
        if self._spread is not None:
            check_unchanged(self._spread)

    def begin(self, steps: int, state: Mapping[str, Any] | None, devices: Sequence[int]) -> None:
        """On rank 0: have the others go where the run begins.

        Args:
            steps: How many it has taken.
            state: The full state there; None where a run begins anew.
            devices: This rank's CUDA devices.

        Raises:
            TracingError: Another rank cannot go there.
        """
        if self._spread is None:
            return
        link, random = self._linked(), dict[int, RandomState]()
        for rank in range(1, self.size):
            link.send(encode({_STEPS: steps, _STATE: _of_rank(state, rank)}, "the state"), rank)
        for rank in range(1, self.size):
            said = _received(link, rank)[_RANDOM]
            random[rank] = _random(said, devices)
        group = self._spread.process_group
        self._gathering = Gathering(link, random, steps, devices, patience(group))

    def beginning(self, devices: Sequence[int]) -> tuple[int, dict[str, Any] | None]:
        """On the others: return how many steps the run has taken, and the full state there.

        Args:
            devices: This rank's CUDA devices.

        Raises:
            TracingError: Rank 0 has no wrapper.
        """
        said = _received(self._linked(), 0)
        state = said[_STATE]
        if state is not None:
            cuda = state["random"]["cuda"].values()
            state["random"]["cuda"] = dict(zip(devices, cuda, strict=True))
        return said[_STEPS], state

    def began(self, random: RandomState) -> None:
        """On the others: say that this rank is there, with its generators."""
        self._linked().send(encode({_RANDOM: random.all}, "the generators"), 0)

    def say(self, part: Part) -> None:
        """On the others: tell rank 0 this one's part of a step.

        Raises:
            RuntimeError: It has ended.
        """
        self._linked().send(packed(part), 0)

    def end(self) -> None:
        """On the others: say that there are no more steps, unless rank 0 has ended."""
        with suppress(RuntimeError):
            self._linked().send(END, 0)
            self._linked().finish()

    def whole(self, t: int, own: Sequence[MicroBatch]) -> tuple[MicroBatch, ...]:
        """On rank 0: return the micro-batches of step ``t``, its own first.

        Raises:
            TracingError: Another rank has ended, or its examples cannot be of this step.
        """
        if self._gathering is None:
            return tuple(own)
        found = (*own, *self._gathering.of(t))
        kinds = {type(micro.ids[0]) for micro in found}
        if len(kinds) > 1:
            raise TracingError(f"batch IDs of step {t} are integers on one rank, text on another")
        return coupled(found, t) if self._couples else found

    def random(self, steps: int) -> list[RandomState]:
        """On rank 0: return the others' generators after so many steps.

        Raises:
            TracingError: Another rank has ended.
        """
        return [] if self._gathering is None else self._gathering.random(steps)

    def _linked(self) -> Link:
        assert self._link is not None
        return self._link

    def _fail(self, why: str) -> None:
        if self._spread is None:
            return
        self._meeting.fail(why)
        if self._link is not None:
            for rank in range(1, self.size) if self.rank == 0 else [0]:
                self._link.send(encode({_FAILURE: why}, "the failure"), rank)


def _received(link: Link, rank: int) -> dict[str, Any]:
    try:
        said: dict[str, Any] = decode(link.receive(rank))
    except RuntimeError as error:
        raise failed_on(rank, "it has ended") from error
    if _FAILURE in said:
        raise failed_on(rank, said[_FAILURE])
    return said


def _random(states: Sequence[Tensor], devices: Sequence[int]) -> RandomState:
    return RandomState(states[0], dict(zip(devices, states[1:], strict=True)))


def _of_rank(state: Mapping[str, Any] | None, rank: int) -> dict[str, Any] | None:
    """Return a full state with the generators of one rank."""
    if state is None:
        return None
    return {**state, "random": state["ranks"][rank - 1], "ranks": []}
