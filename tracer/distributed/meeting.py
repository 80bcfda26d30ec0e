"""The ranks of a run make their wrappers together: all of them, of like arguments, or none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from tracer.errors import TracingError, shown

_LONGEST = timedelta(minutes=5)
_FAILURE = "failure"
_met: Counter[str] = Counter()  # how often each group did


def patience(group: Any) -> timedelta:
    """Return how long a rank is waited for: the group's own timeout, at most five minutes."""
    backends = [group._get_backend(device) for device in group._device_types]
    own: list[timedelta] = [backend.options._timeout for backend in backends]
    return min([_LONGEST, *own])


class Meeting:
    """Where ranks say what they were given.

    Args:
        group: The ranks.
    """

    def __init__(self, group: Any) -> None:
        name = group.group_name
        self._rank, self._size, self._patience = group.rank(), group.size(), patience(group)
        store = dist.distributed_c10d._get_default_store()
        self._store = dist.distributed_c10d.PrefixStore(f"tracer/{name}/{_met[name]}", store)
        _met[name] += 1

    def fail(self, why: str) -> None:
        """Tell the others that there will be no wrapper on this rank."""
        self._store.set(str(self._rank), json.dumps({_FAILURE: why}))

    def meet(self, given: Mapping[str, Any]) -> None:
        """Return once every rank is here and was given the same.

        Args:
            given: What has to be the same on all ranks; data for JSON.

        Raises:
            TracingError: A rank does not come, has failed, or was given something else.
        """
        self._store.set(str(self._rank), json.dumps(given))
        keys = [str(rank) for rank in range(self._size)]
        try:
            self._store.wait(keys, self._patience)
        except RuntimeError:  # each kind of store has its own
            raise TracingError(self._missing(keys)) from None
        for key in keys:
            other = json.loads(self._store.get(key))
            if _FAILURE in other:
                raise failed_on(int(key), other[_FAILURE])
            _require_alike(given, other, self._rank, int(key))

    def _missing(self, keys: list[str]) -> str:
        missing = ", ".join(key for key in keys if not self._store.check([key]))
        return (
            f"expected a wrapper on each of the {self._size} ranks, and found none on rank "
            f"{missing} within {self._patience.total_seconds():.0f} s.\n"
            "1. Make the wrapper on every rank, with the same arguments: rank 0 writes the log, "
            "the others tell it their part.\n"
            "2. If a rank prepares data first, have the others wait: dist.barrier()."
        )


def failed_on(rank: int, why: str) -> TracingError:
    """Return the error of a rank where there is no wrapper, since there is none on another one."""
    return TracingError(f"rank {rank} has no wrapper, so that this one cannot have one: {why}")


def _require_alike(given: Mapping[str, Any], other: Mapping[str, Any], own: int, rank: int) -> None:
    for name, value in given.items():
        if other.get(name) != value:
            raise TracingError(
                f"the ranks of a run need the same arguments, found {name}={shown(value)} on rank "
                f"{own} and {shown(other.get(name))} on rank {rank}.\n"
                "1. Give them the same."
            )
