"""The epoch of the steps to come: what the loop says, or what a data set with seeds draws for."""

from __future__ import annotations

from typing import Any

from tracer.errors import TracingError, shown
from tracer.watch.state_capture import RunState
from tracer.wrapper.arguments import checked_epoch
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
