"""Arguments of a question, each checked by itself: IDs, methods, windows, parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import index
from typing import Any

from replay.arguments import listed
from replay.methods.method import Method
from replay.methods.table import METHODS
from replay.names import SELF
from replay.task import beginning, example_ids, unknown_ids
from tracer.errors import InputError, shown
from tracer.identities import fault_of, plain_ids
from tracer.records import ID

_SELF = (
    " Self-influence is a table over training examples, not over pairs: call run.self_influence() "
    "(tracin-replay self run.h5)."
)
Window = slice | range | tuple[int, int] | str


def known_ids(ids: Any, dataset: Any, side: str) -> list[ID]:
    """Return IDs, of a list, a tensor, a mapping's keys, as Python numbers or text.

    Raises:
        InputError: They are not some of a data set's, each once.
    """
    found = listed(list(ids) if isinstance(ids, Mapping) else ids)
    if found is None:
        raise InputError(f"expected a list of {side} IDs like [3, 14], found {shown(ids)}.")
    if not found:
        raise InputError(f"expected at least one {side} ID, found none; None means all.")
    found = plain_ids(found)
    for k, identity in enumerate(found):
        if type(identity) not in (int, str):
            raise InputError(
                f"{side} IDs are whole numbers or text, and number {k + 1} of the list is "
                f"{shown(identity)}; give the IDs, not the examples."
            )
    fault = fault_of(found)
    if fault:
        raise InputError(
            f"{side} IDs of one result must be all integers of 64 bits or all text without NUL; "
            f"{fault}. Ask for those of one kind (test_ids=, train_ids=), or give the data set "
            "other keys."
        )
    unknown = unknown_ids(dataset, found)
    if unknown:
        raise InputError(
            f"the {side} set has no example {shown(unknown[0])}; {beginning(example_ids(dataset))}."
        )
    if len(set(found)) < len(found):
        twice = next(i for i, count in Counter(found).items() if count > 1)
        raise InputError(f"{side} ID {shown(twice)} is listed twice; list each example once.")
    return found


def chosen_methods(methods: str | Iterable[str]) -> tuple[Method, ...]:
    """Return methods by their names, one name or several.

    Raises:
        InputError: There is none, or one is unknown or named twice.
    """
    names = [methods] if isinstance(methods, str) else listed(methods)
    if not names or not all(isinstance(name, str) and name in METHODS for name in names):
        raise InputError(
            f"methods are any of {', '.join(METHODS)}; found {shown(methods)}."
            + (_SELF if SELF in (names or ()) else "")
        )
    if len(set(names)) < len(names):
        raise InputError(f"methods names one twice: {', '.join(names)}; name each once.")
    return tuple(METHODS[name] for name in names)


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
    bounds = _bounds(steps)
    try:
        start, stop, stride = (None if v is None else index(v) for v in bounds or ())
    except (TypeError, ValueError):  # no numbers, or not three
        stride = 0
    if stride in (None, 1):
        start, stop = 0 if start is None else start, total if stop is None else stop
        if 0 <= start < stop <= total:
            return range(start, stop)
    raise InputError(
        f"steps is a window a:b with 0 <= a < b <= {total} of this run, found {shown(steps)}; "
        'write "0:5", slice(0, 5) or (0, 5).'
    )


def _bounds(steps: Any) -> tuple[Any, Any, Any] | None:
    """Return first step, end and stride of what can be a window."""
    if isinstance(steps, str):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", steps, re.ASCII)
        first, end = match.groups() if match else ("0", "0")
        return int(first) if first else None, int(end) if end else None, 1
    if isinstance(steps, (range, slice)):
        return steps.start, steps.stop, steps.step
    return (*steps, 1) if isinstance(steps, tuple) and len(steps) == 2 else None


def matching(patterns: str | Iterable[str] | None, names: Sequence[str]) -> frozenset[str] | None:
    """Return the parameters that match any pattern (``"head.*"``); None if all are meant.

    Raises:
        InputError: A pattern matches none.
    """
    if patterns is None:
        return None
    given = [patterns] if isinstance(patterns, str) else listed(patterns)
    if not given or not all(isinstance(pattern, str) for pattern in given):
        raise InputError(
            f'parameters are patterns of names like "head.*", at least one, or None for all; '
            f"found {shown(patterns)}."
        )
    found: set[str] = set()
    for pattern in given:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"no parameter matches {shown(pattern)}; the model has {some}.")
        found.update(hits)
    return frozenset(found)
