"""Arguments that several rooms take, checked alike: what fits is returned plain, else an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from tracer.errors import InputError, shown


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number that is at least ``least``."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} must be a whole number from {least} on, found {shown(value)}.")
    return number


def flag(name: str, value: Any) -> bool:
    """Return True or False; nothing else is taken for them."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False, found {shown(value)}.")
    return bool(value)


def positive(name: str, value: Any) -> float | None:
    """Return a positive number, or None where None was given."""
    given = plain(value)
    if given is None:
        return None
    if not isinstance(given, Real) or isinstance(given, bool) or not float(given) > 0:
        raise InputError(f"{name} must be a positive number or None, found {shown(value)}.")
    return float(given)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Return one of some names."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        listed = " or ".join(f'"{one}"' for one in names)
        raise InputError(f"{name} must be {listed}, found {shown(value)}.")
    return value


def place(what: str, value: Any) -> Path:
    """Return a path."""
    try:
        found = Path(value)
    except TypeError:
        found = Path("\0")
    if "\0" in str(found):
        raise InputError(f"expected the path of {what}, found {shown(value)}.")
    return found


def listed(value: Any) -> list[Any] | None:
    """Return the items of a list, array, tensor, set or the like; None of what is no list.

    Numbers of arrays and tensors become Python's.
    """
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, (str, bytes, type, Mapping)) or not isinstance(items, Iterable):
        return None
    return [plain(one) for one in items]


def plain(value: Any) -> Any:
    """Return the number that a scalar of an array or a tensor holds, and all else as it is."""
    single = hasattr(value, "item") and tuple(getattr(value, "shape", (0,))) == ()
    return value.item() if single else value
