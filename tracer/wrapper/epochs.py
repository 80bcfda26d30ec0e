"""The epoch of the steps to come: what the loop says, or what a data set with seeds draws for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracer.errors import TracingError, shown, warn
from tracer.records import ID
from tracer.watch.state_capture import RunState
from tracer.wrapper.arguments import checked_epoch
from tracer.wrapper.observed import Observed
from tracer.wrapper.with_ids import WithIds

_HOW = 'data = with_ids(dataset, seed=0), then record="seeds", data=data and DataLoader(data, ...)'


def checked_data(record: str, data: Any) -> WithIds | None:
    """Return the data set with seeds; raises TracingError if there is none where one is needed."""
    if record != "seeds":
        if data is not None:
            raise TracingError(f'data= is for record="seeds", found record={shown(record)}.')
        return None
    if not isinstance(data, WithIds) or data.seed is None:
        found = "with_ids(...) without seed=" if isinstance(data, WithIds) else shown(data)
        raise TracingError(
            f'record="seeds" needs data=, the data set whose examples have seeds, found {found}.\n'
            f"1. Write {_HOW}.\n"
            '2. Or record the batches themselves: record="batches".'
        )
    return data


class Epochs:
    """Keeps the epoch of the run and of its data set the same.

    Args:
        state: Of the run.
        data: The data set with seeds, if there is one.
    """

    def __init__(self, state: RunState, data: WithIds | None) -> None:
        self._state, self._data = state, data

    def now(self) -> int | None:
        """Return the epoch of the steps to come."""
        if self._data is not None:
            self._state.next_epoch = self._data.epoch  # trainers set it there
        return self._state.next_epoch

    def go_to(self, epoch: Any) -> None:
        """Begin an epoch."""
        self._state.next_epoch = checked_epoch(epoch)
        if self._data is not None and self._state.next_epoch is not None:
            self._data.set_epoch(self._state.next_epoch)


class Draws:
    """Warns, once each, of examples that seeds draw otherwise than a loop may expect.

    Args:
        data: The data set with seeds, if there is one.
    """

    def __init__(self, data: WithIds | None) -> None:
        self._data = data
        self._first: tuple[ID, int] | None = None  # the run's first example, and in which epoch
        self._mixed = self._repeated = False

    def now(self) -> int | None:
        """Return the epoch that examples are drawn for; None without seeds."""
        return None if self._data is None else self._data.epoch

    def check(self, found: Sequence[Observed]) -> None:
        """Look at the micro-batches of a step."""
        if self._data is None:
            return
        epoch = self._data.epoch
        drawn = {epoch, *(one.epoch for one in found if one.epoch is not None)}
        if drawn != {epoch} and not self._mixed:
            self._mixed = True
            others = ", ".join(map(str, sorted(drawn)))
            warn(
                f"a step has micro-batches of the epochs {others}. The log has one epoch for each "
                f"step, so that a replay draws all of its examples for epoch {epoch}, and such a "
                "step will not reproduce.\n"
                "  1. End each epoch with a step, of fewer micro-batches;\n"
                "  2. or drop the rest: optimizer.zero_grad() before the next epoch;\n"
                '  3. or record the batches themselves: record="batches".'
            )
        first, self._first = self._first, self._first or (found[0].ids[0], epoch)
        if first is not None and not self._repeated and epoch == first[1]:
            self._say_repeated(first, found)

    def _say_repeated(self, first: tuple[ID, int], found: Sequence[Observed]) -> None:
        if not any(first[0] in one.ids for one in found):
            return
        self._repeated = True
        warn(
            f"example {shown(first[0])} was drawn again in epoch {first[1]}: by its seed it is the "
            "same one both times, without new augmentation.\n"
            "  1. Set optimizer.epoch = epoch before each loop over the loader, or call "
            "data.set_epoch(epoch);\n"
            "  2. if a sampler gives examples several times in an epoch, this is right."
        )
