"""Batch IDs as users pass them: checked and turned into plain integers or strings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tracer.errors import TracingError
from tracer.identities import fault_of, plain_id
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
    if type(batch_ids) is list and set(map(type, batch_ids)) <= {int, str}:
        found = tuple(batch_ids)
    else:
        found = tuple([_plain(identity) for identity in batch_ids])
    if not found:
        raise TracingError("batch IDs are empty: a step has at least one example.")
    fault = fault_of(found)
    if fault:
        raise TracingError(
            f"batch IDs must be all integers of 64 bits or all text without NUL; {fault}. Use "
            "positions in the data set, or text such as str(id)."
        )
    return found


def _plain(identity: Any) -> Any:
    if isinstance(identity, (Tensor, np.ndarray, np.generic)) and identity.ndim == 0:
        identity = identity.item()
    if isinstance(identity, (list, tuple, Tensor, np.ndarray)):
        raise TracingError(
            "batch IDs must be one-dimensional, one for each example; found a list inside."
        )
    found = plain_id(identity)
    return identity if found is None else found
