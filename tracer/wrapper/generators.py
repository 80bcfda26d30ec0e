"""Random generators, the global ones and those that a task holds: found, and left as found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch

_DEEP = 6  # generators lie no deeper in what a task holds
_MANY = 100  # elements of a container that are looked at


@contextmanager
def left_as_found(*held: Any) -> Iterator[None]:
    """Put the global generators and those that some objects hold back to where they were.

    Importing a library may draw, too.
    """
    undo: list[Callable[[], object]] = [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002
        partial(torch.set_rng_state, torch.get_rng_state()),
    ]
    seen: set[int] = set()
    for one in held:
        _collect(one, seen, undo, _DEEP)
    try:
        yield
    finally:
        for back in undo:
            back()


def _collect(value: Any, seen: set[int], undo: list[Callable[[], object]], deep: int) -> None:
    if id(value) in seen or deep == 0:
        return
    seen.add(id(value))
    back = _undo(value)
    if back is not None:
        undo.append(back)
        return
    for one in _parts(value):
        _collect(one, seen, undo, deep - 1)


def _undo(value: Any) -> Callable[[], object] | None:
    """Return what puts a generator back to where it is now; None of anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None


def _parts(value: Any) -> list[Any]:
    """Return what an object, a container or a function holds."""
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        used = [value.__globals__[n] for n in value.__code__.co_names if n in value.__globals__]
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        return [*cells, *(value.__defaults__ or ()), *(u for u in used if not _is_library(u))]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return list(value.values()) if len(value) <= _MANY else []
    if isinstance(value, (list, tuple)):
        return list(value[:_MANY])
    if isinstance(value, (torch.Tensor, np.ndarray, type)) or _is_library(value):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_full(cell: Any) -> bool:
    try:
        return bool(cell.cell_contents is not None)
    except ValueError:
        return False


def _is_library(value: Any) -> bool:
    return isinstance(value, type(np))
