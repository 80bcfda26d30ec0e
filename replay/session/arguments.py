"""What a replay is asked: IDs, methods, windows and patterns, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from replay.task import unknown_ids
from tracer.errors import InputError
from tracer.records import ID

METHODS = ("tracin", "ideal", "tracincp", "tracin-sgd")
DEFAULT = METHODS[:3]

Window = slice | range | tuple[int, int] | str


def known_ids(ids: Any, dataset: Any, side: str) -> list[ID]:
    """Return IDs, of a list, tensor or array, as Python numbers or text.

    Raises:
        InputError: They are not some of a data set's, each once.
    """
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(listed, (str, bytes)) or not hasattr(listed, "__iter__"):
        raise InputError(f"expected a list of {side} IDs, found {ids!r}.")
    found: list[ID] = [one.item() if hasattr(one, "item") else one for one in listed]
    if len(found) == 0:
        raise InputError(f"expected at least one {side} ID, found none.")
    unknown = unknown_ids(dataset, found)
    if unknown:
        raise InputError(f"the {side} set has no example {unknown[0]!r}.")
    if len(set(found)) < len(found):
        twice = next(i for i in found if found.count(i) > 1)
        raise InputError(f"{side} ID {twice!r} is listed twice; list each example once.")
    return found


def check_options(values: str, audit: int) -> None:
    """Raise InputError unless a replay can be run like this; see ``Replay``."""
    if values not in ("float64", "model"):
        raise InputError(f'values must be "float64" or "model", found {values!r}.')
    if audit < 1:
        raise InputError(f"audit is a number of passes, at least 1, found {audit}.")


def check_methods(methods: Sequence[str]) -> None:
    """Raise InputError unless every method is known."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or isinstance(methods, str):
        raise InputError(f"methods are any of {', '.join(METHODS)}; found {methods!r}.")


def check_tolerance(tolerance: float | None) -> None:
    """Raise InputError unless ``ideal_tolerance`` can be one."""
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"ideal_tolerance must be positive or None, found {tolerance}.")


def window(steps: Window | None, total: int) -> range:
    """Return the steps of a window.

    Args:
        steps: ``range(a, b)``, ``slice(a, b)``, ``(a, b)`` or ``"a:b"``; None is all.
        total: How many the run has.

    Raises:
        InputError: It is none of this run's.
    """
    if steps is None:
        return range(total)
    start: int | None = None
    stop: int | None = None
    stride: int | None = 1
    if isinstance(steps, str):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", steps)
        start, stop = (int(v) if v else None for v in match.groups()) if match else (-1, -1)
    elif isinstance(steps, tuple):
        start, stop = steps if len(steps) == 2 else (-1, -1)
    elif isinstance(steps, (range, slice)):
        start, stop, stride = steps.start, steps.stop, steps.step
    else:
        start = -1
    start, stop = 0 if start is None else start, total if stop is None else stop
    if not (stride in (None, 1) and 0 <= start < stop <= total):
        raise InputError(
            f"steps is a window a:b with 0 <= a < b <= {total} of this run, found {steps}."
        )
    return range(start, stop)


def matching(patterns: str | Iterable[str] | None, names: Sequence[str]) -> frozenset[str] | None:
    """Return the parameters that match any pattern (``"head.*"``); None if all are meant.

    Raises:
        InputError: A pattern matches none.
    """
    if patterns is None:
        return None
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"no parameter matches {pattern!r}; the model has {shown}.")
        found.update(hits)
    if not found:
        raise InputError("parameters is empty; give at least one pattern, or None for all.")
    return frozenset(found)
