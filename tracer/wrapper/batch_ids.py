"""Batch IDs as users pass them: checked and turned into plain integers or strings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tracer.errors import TracingError
from tracer.records import ID


def plain_ids(batch_ids: Any) -> tuple[ID, ...]:
    """Return IDs as Python integers or strings.

    Args:
        batch_ids: A 1-D integer tensor or array, or a list of integers or strings, ``(b,)``.

    Raises:
        TracingError: They are missing, empty, not one-dimensional, or of mixed or other types.
    """
    if batch_ids is None:
        raise TracingError(
            "step() got no batch IDs: write optimizer.step(batch_ids=ids), or "
            "optimizer.observe(ids) once a micro-batch before it."
        )
    if isinstance(batch_ids, (Tensor, np.ndarray)):
        if batch_ids.ndim != 1:
            raise TracingError(
                "batch IDs must be one-dimensional, one for each example; found shape "
                f"{tuple(batch_ids.shape)}."
            )
        batch_ids = batch_ids.tolist()
    if isinstance(batch_ids, (str, bytes)) or not hasattr(batch_ids, "__iter__"):
        raise TracingError(
            f"batch IDs must be a list, one for each example; found {type(batch_ids).__name__}."
        )
    if type(batch_ids) is list and set(map(type, batch_ids)) == {int} and _fit(batch_ids):
        return tuple(batch_ids)
    found = tuple(_plain(identity) for identity in batch_ids)
    if not found:
        raise TracingError("batch IDs are empty: a step has at least one example.")
    if len({type(identity) for identity in found}) > 1:
        raise TracingError(
            "batch IDs must be all integers or all strings; found both in one batch."
        )
    for identity in found if isinstance(found[0], str) else ():
        if not _is_text(identity):
            raise TracingError(
                f"batch IDs must be text that UTF-8 can hold; found {identity!r}, part of a "
                "character."
            )
    return found


def _fit(numbers: list[int]) -> bool:
    """Return whether integers fit into 64 bits."""
    return min(numbers) >= -(2**63) and max(numbers) < 2**63


def _is_text(identity: Any) -> bool:
    try:
        identity.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(identity: Any) -> ID:
    if isinstance(identity, (Tensor, np.ndarray)) and identity.ndim == 0:
        identity = identity.item()
    if isinstance(identity, np.generic):
        identity = identity.item()
    if isinstance(identity, (list, tuple, Tensor, np.ndarray)):
        raise TracingError(
            "batch IDs must be one-dimensional, one for each example; found a list inside."
        )
    if isinstance(identity, bool) or not isinstance(identity, (int, str)):
        raise TracingError(
            f"batch IDs must be integers or strings; found {identity!r} of type "
            f"{type(identity).__name__}."
        )
    if isinstance(identity, int) and not _fit([identity]):
        raise TracingError(f"batch IDs must fit into 64 bits; found {identity}.")
    return identity
